package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/meshq/meshq/client"
)

// exampleMesh starts a mesh for an example to run against: "photos" is its queue.
// Programs have real addresses instead.
func exampleMesh() (servers string, stop func()) {
	f, err := startFakeMesh(3)
	if err != nil {
		log.Fatal(err)
	}
	f.create("photos", 1)
	return f.servers(), f.close
}

// Send a message, and receive it.
func Example() {
	servers, stop := exampleMesh()
	defer stop()
	ctx := context.Background()

	mesh, err := client.Dial(ctx, servers)
	if err != nil {
		log.Fatal(err)
	}
	defer mesh.Close()

	photos := mesh.Queue("photos")
	sent, err := photos.Send(ctx, client.Message{Body: []byte("cat.jpg"), Key: "user-7"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("on %d nodes, %d were needed\n", sent.Confirmed, sent.Want)

	deliveries, err := photos.Receive(ctx, "default", 10, 5*time.Second)
	if err != nil {
		log.Fatal(err)
	}
	for _, d := range deliveries {
		fmt.Printf("%s, attempt %d\n", d.Body, d.Attempt)
		if err := d.Ack(ctx); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// on 2 nodes, 2 were needed
	// cat.jpg, attempt 1
}

// A handler acks by returning nil. An error gives the message back.
func ExampleQueue_Consume() {
	servers, stop := exampleMesh()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	mesh, err := client.Dial(ctx, servers)
	if err != nil {
		log.Fatal(err)
	}
	defer mesh.Close()

	photos := mesh.Queue("photos")
	if _, err := photos.Send(ctx, client.Message{Body: []byte("cat.jpg")}); err != nil {
		log.Fatal(err)
	}
	err = photos.Consume(ctx, "default", func(ctx context.Context, d *client.Delivery) error {
		if d.Attempt == 1 {
			fmt.Printf("%s: not now\n", d.Body)
			return client.Retry(errors.New("camera is off"), 10*time.Millisecond)
		}
		fmt.Printf("%s: done, delivered again because of %s\n", d.Body, d.Cause)
		cancel()
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output:
	// cat.jpg: not now
	// cat.jpg: done, delivered again because of nack
}

// SendAsync keeps many messages under way; each has its own answer.
func ExampleQueue_SendAsync() {
	servers, stop := exampleMesh()
	defer stop()
	ctx := context.Background()

	mesh, err := client.Dial(ctx, servers)
	if err != nil {
		log.Fatal(err)
	}
	defer mesh.Close()

	var futures []*client.Future
	for i := range 1000 {
		f, err := mesh.Queue("photos").SendAsync(ctx, client.Message{Body: fmt.Append(nil, i)})
		if err != nil {
			log.Fatal(err)
		}
		futures = append(futures, f)
	}
	for _, f := range futures {
		if _, err := f.Wait(ctx); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println(len(futures), "confirmed")
	// Output: 1000 confirmed
}

// An error says whether the message may be stored all the same.
func ExampleQueue_Send_errors() {
	servers, stop := exampleMesh()
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()

	mesh, err := client.Dial(ctx, servers)
	if err != nil {
		log.Fatal(err)
	}
	defer mesh.Close()

	_, err = mesh.Queue("nothing").Send(ctx, client.Message{Body: []byte("cat.jpg")})
	switch {
	case err == nil:
		fmt.Println("confirmed")
	case errors.Is(err, client.ErrQuorum):
		fmt.Println("not confirmed, may still be delivered: send it again")
	case errors.Is(err, client.ErrNoQueue):
		fmt.Println("not stored: create the queue first")
	default:
		fmt.Println("not stored:", err)
	}
	// Output: not stored: create the queue first
}

// A Consumer keeps its subscription from one Receive to the next. AckAll confirms many
// messages at once.
func ExampleConsumer() {
	servers, stop := exampleMesh()
	defer stop()
	ctx := context.Background()

	mesh, err := client.Dial(ctx, servers)
	if err != nil {
		log.Fatal(err)
	}
	defer mesh.Close()

	photos := mesh.Queue("photos")
	if _, err := photos.SendBatch(ctx, []client.Message{{Body: []byte("a")}, {Body: []byte("b")}, {Body: []byte("c")}}); err != nil {
		log.Fatal(err)
	}
	consumer, err := photos.Consumer(ctx, "default")
	if err != nil {
		log.Fatal(err)
	}
	defer consumer.Close()
	for done := 0; done < 3; {
		deliveries, err := consumer.Receive(ctx, 2, 5*time.Second)
		if err != nil {
			log.Fatal(err)
		}
		for _, d := range deliveries {
			fmt.Printf("%s\n", d.Body)
		}
		if err := consumer.AckAll(ctx, deliveries); err != nil {
			log.Fatal(err)
		}
		done += len(deliveries)
	}
	// Output:
	// a
	// b
	// c
}
