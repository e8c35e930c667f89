// Package client sends to and receives from the queues of a mesh.
//
//	mesh, err := client.Dial(ctx, "10.0.0.1:7700,10.0.0.2:7700")
//	photos := mesh.Queue("photo_posted")
//	sent, err := photos.Send(ctx, client.Message{Body: body, Key: userID})
//	err = photos.Consume(ctx, "thumbnails", func(ctx context.Context, d *client.Delivery) error {
//		return resize(ctx, d.Body)
//	}, client.Concurrency(16))
//
// # Sending
//
// Send returns when the message is synced on the queue's write quorum (P1). What is
// sent at the same time, from any goroutine, travels in one batch for each partition.
// Batches of a partition go out one after the other, so what one Mesh sends to a
// partition keeps its order (P5). The client goes to the owner of the partition, and
// when that refuses the connection or is silent for 250 ms to the next node; a node
// that says ErrOverloaded is left alone for a while and not passed over. A message is
// tried until the deadline of its context (30 s without one). Then the error says
// whether it may be stored all the same: errors.Is(err, ErrQuorum).
//
// # Receiving
//
// Consume runs a handler for each message; Receive and Consumer hand out messages to
// be settled with Ack, Nack or Release. The delivery lease of a message in hand is
// extended until it is settled, and when its owner dies the client tells the next one
// what it holds, so that it is not delivered twice. A message may still come more than
// once; Delivery.Redelivered and Delivery.Fence help to tell.
//
// It knows nothing of how nodes store or agree. The decisions are in client/core, a
// deterministic state machine; this package has the connections, timers and channels
// around it. Open mesh.go first, then loop.go.
package client
