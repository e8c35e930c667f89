//go:build mesh && linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/meshq/meshq/client"
)

// loopDisk is an ext4 of its own in a file.
type loopDisk struct {
	t          *testing.T
	image, dir string
	mounted    bool
}

// newLoopDisk makes and mounts a file system of so many MiB, or skips the test where
// that cannot be done. It is unmounted at the end of the test.
func newLoopDisk(t *testing.T, mib int64) *loopDisk {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a file system")
	}
	if out, err := exec.Command("losetup", "-f").CombinedOutput(); err != nil {
		t.Skipf("no loop devices: %v %s", err, out)
	}
	root := t.TempDir()
	d := &loopDisk{t: t, image: filepath.Join(root, "image"), dir: filepath.Join(root, "mount")}
	f, err := os.Create(d.image)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(mib<<20), f.Close(), os.Mkdir(d.dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-m", "0", d.image).CombinedOutput(); err != nil {
		t.Skipf("no mkfs.ext4: %v %s", err, out)
	}
	d.guard()
	t.Cleanup(d.unmount)
	d.mount()
	return d
}

// guard starts a shell that unmounts when the test is gone, however it ended.
func (d *loopDisk) guard() {
	d.t.Helper()
	cmd := exec.Command("sh", "-c", `cat; while umount -l "$0" 2>/dev/null; do :; done`, d.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt is not for it
	alive, err := cmd.StdinPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = alive.Close(); _ = cmd.Wait() })
}

func (d *loopDisk) mount() {
	d.t.Helper()
	if out, err := exec.Command("mount", "-o", "loop", d.image, d.dir).CombinedOutput(); err != nil {
		d.t.Skipf("no loop mounts: %v %s", err, out)
	}
	d.mounted = true
}

func (d *loopDisk) unmount() {
	d.t.Helper()
	if !d.mounted {
		return
	}
	d.mounted = false
	if out, err := exec.Command("umount", d.dir).CombinedOutput(); err != nil {
		d.t.Errorf("umount: %v %s", err, out)
		_ = exec.Command("umount", "-l", d.dir).Run()
	}
}

func (d *loopDisk) data() string { return filepath.Join(d.dir, "data") }

// free is the room that is left, in bytes.
func (d *loopDisk) free() int64 {
	d.t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil {
		d.t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// fill makes a file that leaves so many bytes free, and returns its path.
func (d *loopDisk) fill(leave int64) string {
	d.t.Helper()
	path := filepath.Join(d.dir, "filler")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		d.t.Fatal(err)
	}
	if more := d.free() - leave; more > 0 {
		if err := unix.Fallocate(int(f.Fd()), 0, info.Size(), more); err != nil {
			d.t.Fatal(err)
		}
	}
	return path
}

// cutPower takes the disks away as a power cut does: what is not synced is gone, and
// what is written from now on fails.
func cutPower(t *testing.T, disks []*loopDisk) {
	t.Helper()
	const shutdown, noLogFlush = 0x8004587d, 2 // EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH
	var dirs []*os.File
	for _, d := range disks {
		f, err := os.Open(d.dir)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		dirs = append(dirs, f)
	}
	errs := make([]error, len(dirs))
	var g sync.WaitGroup
	for i, f := range dirs {
		g.Go(func() {
			flags := uint32(noLogFlush)
			if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), shutdown, uintptr(unsafe.Pointer(&flags))); e != 0 {
				errs[i] = e
			}
		})
	}
	g.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Skipf("the file system cannot be shut down: %v", err)
	}
}

// All machines lose power at once, under load.
func TestMeshPowerCut(t *testing.T) {
	var disks []*loopDisk
	var dirs []string
	for range 3 {
		d := newLoopDisk(t, 4<<10)
		disks, dirs = append(disks, d), append(dirs, d.data())
	}
	m := newMesh(t, 3, dirs...)
	m.must("queue", "create", "work")
	l := m.startLoad(loadPlan{queue: "work", producers: 4, rate: 2000, size: 512, consumers: 1})
	for round := range 2 {
		l.waitDeliveries(2000)
		at := time.Now()
		cutPower(t, disks)
		m.kill(m.all()...)
		before := l.count()
		for _, d := range disks {
			d.unmount()
			d.mount()
		}
		m.restart(m.all()...)
		back := time.Since(at)
		l.waitDeliveries(2000)
		repairing := 0
		for _, n := range m.nodes {
			if strings.Contains(m.logTail(n, 1000), "damaged") {
				repairing++
			}
		}
		t.Logf("power cut %d with %d messages confirmed: active again after %s, %d delivered again, %d nodes found damage", round+1, before, ms(back), l.deliveredAgain(at, time.Now()), repairing)
	}
	l.finish()
	v := l.check()
	equal := m.waitEqual("work")
	t.Logf("replicas equal %s after the load; %v", ms(equal), v)
	if v.refused > 0 {
		t.Errorf("%d messages were not confirmed, the first: %v", v.refused, l.refused[0])
	}
}

// dataExtent is where the content of a file ends; after it there are only zeros.
func dataExtent(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	const block = 1 << 20
	buf := make([]byte, block)
	extent := int64(0)
	for at := int64(0); ; {
		next, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return extent, nil // only holes from here
		}
		if err != nil {
			return 0, err
		}
		at = next
		n, _ := f.ReadAt(buf, at)
		if n == 0 {
			return extent, nil
		}
		if used := len(bytes.TrimRight(buf[:n], "\x00")); used > 0 {
			extent = at + int64(used)
		}
		at += int64(n)
	}
}

// flipByte changes a byte in the middle of the content of a file, and says where.
func flipByte(path string) (string, error) {
	extent, err := dataExtent(path)
	if err != nil {
		return "", err
	}
	if extent == 0 {
		return "", errors.New("no content")
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	at := extent / 2
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		return "", err
	}
	b[0] ^= 0xff
	if _, err := f.WriteAt(b[:], at); err != nil {
		return "", err
	}
	return fmt.Sprintf("byte %d of %d", at, extent), f.Sync()
}

// fullest is the file that matches a pattern and has the most content.
func fullest(root, pattern string) string {
	best, most := "", int64(0)
	_ = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		relative, _ := filepath.Rel(root, path)
		if ok, _ := filepath.Match(pattern, relative); ok {
			if n, err := dataExtent(path); err == nil && n > most {
				best, most = path, n
			}
		}
		return nil
	})
	return best
}

// One byte is flipped in a file of a node that is down: in each kind of file in turn.
// Then that node owns the queue and delivers it.
func TestMeshDamagedCopy(t *testing.T) {
	var table strings.Builder
	fmt.Fprintf(&table, "\n%-30s %-8s %-24s %-9s %-9s %s", "file", "stopped", "flipped", "active", "equal", "noticed")
	defer func() { t.Log(table.String()) }()
	for _, test := range []struct {
		pattern string
		crash   bool // SIGKILL: after SIGTERM there is no such file, or nothing in it
		unused  bool // what is flipped may be of no use any more, so nobody need notice
	}{
		{"segments/*/*.vlog", false, false},
		{"segments/*/*.vlog", true, false},
		{"segments/*/*.sst", false, false},
		{"segments/*/*.mem", true, false},
		{"segments/*/MANIFEST", false, false},
		{"segments/*/KEYREGISTRY", false, true},
		{"meta/*.sst", false, false},
		{"meta/*.mem", true, false},
		{"meta/MANIFEST", false, false},
		{"meta/*.vlog", true, true},
		{"identity", false, true},
		{"watermark", false, true},
	} {
		t.Run(strings.ReplaceAll(test.pattern, "/", " "), func(t *testing.T) {
			m := newMesh(t, 3)
			m.must("queue", "create", "work")
			_, home := m.waitOwner("work")
			mesh, want := m.dial(), map[string]bool{}
			m.fill(mesh, "work", want, 400, 2000)
			m.waitEqual("work")
			victim := home[0] // it will own the queue when its owner dies
			d := m.damage(victim, test.pattern, test.crash)
			if d.path == "" {
				t.Skip("there is no such file with content")
			}
			from := time.Now()
			m.restart(victim)
			active := time.Since(from)
			equal := m.waitEqual("work")

			// The damaged node becomes the owner and delivers what it has.
			owner, _ := m.waitOwner("work")
			if owner != victim {
				m.kill(owner)
				if now, _ := m.waitOwner("work", owner); now != victim {
					t.Logf("%s took over, not the damaged %s", m.nodes[now].name, m.nodes[victim].name)
				}
			}
			m.take(mesh, "work", want, len(want))
			if owner != victim {
				m.restart(owner)
			}
			m.waitEqual("work")
			if code, out, _ := m.meshq("receive", "work", "--wait", "500ms", "--json"); code != exitNothing {
				t.Errorf("exit code %d: something acked came back: %s", code, out)
			}
			noticed := m.damageNoticed(victim, d.logged)
			fmt.Fprintf(&table, "\n%-30s %-8s %-24s %-9s %-9s %s", d.path, d.how, d.where, ms(active), ms(equal), noticed)
			if !test.unused && noticed == "" {
				t.Errorf("%s, %s: the damage was not noticed", d.path, d.where)
			}
		})
	}
}

// Two of three nodes come back damaged, one after the other; what is old and what is new
// is served all the same.
func TestMeshDamagedOneAfterTheOther(t *testing.T) {
	m := newMesh(t, 3)
	m.must("queue", "create", "old")
	m.waitOwner("old")
	mesh, want := m.dial(), map[string]bool{}
	m.fill(mesh, "old", want, 400, 2000)
	for _, pattern := range []string{"segments/*/MANIFEST", "meta/MANIFEST"} {
		for i := range m.nodes {
			m.waitEqual("old")
			m.damage(i, pattern, false)
			m.restart(i)
		}
		m.waitEqual("old")
		queue := "new-" + strings.Trim(strings.ToLower(pattern[:4]), "/")
		m.must("queue", "create", queue)
		m.waitOwner(queue)
		fresh := map[string]bool{}
		m.fill(mesh, queue, fresh, 100, 200)
		m.take(mesh, queue, fresh, len(fresh))
	}
	m.take(mesh, "old", want, len(want))
	m.waitEqual("old")
}

// damaged says what was done to a node.
type damaged struct {
	path, how, where string
	logged           int64 // bytes of its log before
}

// damage stops a node and flips a byte in the fullest file that matches; without one
// the path is empty.
func (m *testMesh) damage(i int, pattern string, crash bool) damaged {
	m.t.Helper()
	node, d := m.nodes[i], damaged{how: "SIGTERM"}
	if crash {
		d.how = "SIGKILL"
		m.kill(i)
	} else if code := m.stop(i); code != exitDone {
		m.t.Errorf("%s: exit code %d", node.name, code)
	}
	path := fullest(node.data, pattern)
	if path == "" {
		return d
	}
	var err error
	if d.where, err = flipByte(path); err != nil {
		m.t.Fatalf("%s: %v", path, err)
	}
	info, err := os.Stat(node.log)
	if err != nil {
		m.t.Fatal(err)
	}
	d.logged = info.Size()
	d.path, _ = filepath.Rel(node.data, path)
	return d
}

// fill sends n messages and notes them as wanted.
func (m *testMesh) fill(mesh *client.Mesh, queue string, want map[string]bool, n, size int) {
	m.t.Helper()
	messages := make([]client.Message, n)
	for i := range messages {
		body := newBody(queue, i, size)
		messages[i].Body, want[body] = []byte(body), true
	}
	if _, err := mesh.Queue(queue).SendBatch(context.Background(), messages); err != nil {
		m.t.Fatal(err)
	}
}

// take receives and acks n of the messages that are wanted, and takes them off: none of
// them may come again. Those with false may come; they do not count.
func (m *testMesh) take(mesh *client.Mesh, queue string, want map[string]bool, n int) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), settlePatience)
	defer cancel()
	c, err := mesh.Queue(queue).Consumer(ctx, "")
	if err != nil {
		m.t.Fatal(err)
	}
	defer c.Close()
	for n > 0 {
		ds, err := c.Receive(ctx, min(n, 1000), 0)
		if err != nil {
			m.t.Fatalf("%s: %d messages are missing: %v", queue, n, err)
		}
		for _, d := range ds {
			body := string(d.Body)
			if _, known := want[body]; !known || !intact(body) {
				m.t.Fatalf("%s: delivered what nobody sent, or what was acked: attempt %d, cause %q, %q", queue, d.Attempt, d.Cause, body[:min(len(body), 60)])
			}
		}
		switch err := c.AckAll(ctx, ds); {
		case errors.Is(err, client.ErrStaleReceipt):
			continue // they come again
		case err != nil:
			m.t.Fatalf("%s: ack: %v", queue, err)
		}
		for _, d := range ds {
			if want[string(d.Body)] {
				n--
			}
			delete(want, string(d.Body))
		}
	}
}

// damageNoticed is what a node has said of damage since a place in its log, or a metric
// that counts it; empty when there is neither.
func (m *testMesh) damageNoticed(i int, from int64) string {
	m.t.Helper()
	text, err := os.ReadFile(m.nodes[i].log)
	if err != nil {
		m.t.Fatal(err)
	}
	for line := range strings.Lines(string(text[from:])) {
		for _, word := range []string{"damage", "set aside", "checksum", "corrupt", "repair"} {
			if strings.Contains(line, word) {
				_, said, _ := strings.Cut(line, "msg=")
				return strings.TrimSpace(said[:min(len(said), 110)])
			}
		}
	}
	if v, err := m.metric(i, "meshq_damage_found_total"); err == nil && v > 0 {
		return fmt.Sprintf("meshq_damage_found_total %v", v)
	}
	return ""
}

// The disks fill up: enqueues are refused in time and with a reason, acks go on, nothing
// confirmed is lost, and with room again all goes on.
func TestMeshFullDisk(t *testing.T) {
	var disks []*loopDisk
	var dirs []string
	for range 3 {
		d := newLoopDisk(t, 3<<10)
		disks, dirs = append(disks, d), append(dirs, d.data())
	}
	m := newMesh(t, 3, dirs...)
	m.must("queue", "create", "work")
	m.waitOwner("work")
	var fillers []string
	for _, d := range disks {
		fillers = append(fillers, d.fill(1<<30+40<<20)) // the default leaves 1 GiB free
	}
	mesh := m.dial(client.SendTimeout(10 * time.Second))
	q := mesh.Queue("work")
	want := map[string]bool{}
	var refusal error
	from := time.Now()
	for i := 0; i < 400 && !errors.Is(refusal, client.ErrDiskFull); i++ {
		body := newBody("full", i, 512<<10)
		switch _, refusal = q.Send(context.Background(), client.Message{Body: []byte(body)}); {
		case refusal == nil:
			want[body] = true
		case errors.Is(refusal, client.ErrQuorum) && strings.Contains(refusal.Error(), "is full"):
			want[body] = false // one disk had room: it says so itself, it may still be delivered
		case !errors.Is(refusal, client.ErrDiskFull):
			t.Fatalf("refused with %v", refusal)
		}
	}
	confirmed := 0
	for _, must := range want {
		if must {
			confirmed++
		}
	}
	t.Logf("after %d messages of 512 KiB in %s: %v", confirmed, ms(time.Since(from)), refusal)
	if !errors.Is(refusal, client.ErrDiskFull) {
		t.Errorf("refused with %v, want ErrDiskFull", refusal)
	}
	from = time.Now()
	code, _, errs := m.meshq("send", "work", "one more", "--timeout", "3s")
	t.Logf("send: exit code %d after %s: %s", code, ms(time.Since(from)), strings.TrimSpace(errs))
	if code != exitFailed || !strings.Contains(errs, "full") {
		t.Errorf("exit code %d: %s", code, errs)
	}

	// Somebody else takes more: what is reserved for acks is left, and acks go on.
	for _, d := range disks {
		d.fill(200 << 20)
	}
	from = time.Now()
	m.take(mesh, "work", want, confirmed/2)
	t.Logf("half of the messages received and acked in %s on full disks", ms(time.Since(from)))

	// All is taken. A node starts all the same, and none stops.
	for _, d := range disks {
		d.fill(8 << 20)
	}
	m.kill(2)
	m.restart(2)
	if code, _, errs := m.meshq("send", "work", "one more", "--timeout", "2s"); code != exitFailed || !strings.Contains(errs, "full") {
		t.Errorf("exit code %d: %s", code, errs)
	}
	for _, path := range fillers {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	from = time.Now()
	m.eventually(startPatience, "enqueues are taken again", func() error {
		body := newBody("room", 0, 100)
		_, err := q.Send(context.Background(), client.Message{Body: []byte(body)})
		want[body] = err == nil
		return err
	})
	t.Logf("with room again enqueues are taken after %s", ms(time.Since(from)))
	m.take(mesh, "work", want, confirmed-confirmed/2+1)
	m.waitEqual("work")
	for _, i := range m.all() {
		if !m.nodes[i].running() {
			t.Errorf("%s has ended: %v", m.nodes[i].name, m.nodes[i].cmd.ProcessState)
		}
	}
}
