// Package chaos makes meshes of real "meshq serve" processes, hurts them, and checks
// what they promised: the same plans, histories and checkers as the simulator's, with the
// real network stack, disks and kernel below.
//
// The nouns:
//
//   - A [Mesh] owns all that a run makes: processes, network, disks, one directory.
//   - A [Node] is a name with addresses and a disk; its processes come and go.
//   - A [Client] is a place that a client connects from.
//   - An [Effect] is what the [Switched] network does to packets between them.
//
// # What a host is
//
// Each node and each client has a host, and a host is one operating system thread of this
// process. Namespaces of the kernel belong to threads: on a switched network the thread
// has a network namespace with one TUN device, whose other end is the switch (switch.go),
// and with disks it has a mount namespace with the mount in it. Processes are forked from
// that thread, so they share its namespaces, and die with it. Nothing of it has a name
// outside: when this process ends, in whatever way, the kernel takes all of it away.
//
// Only files are left then: the directory of the run. Its manifest is locked while its
// owner lives; [Sweep] removes directories whose owner is gone, and what they list.
//
// Open mesh.go first, then process.go (nodes), host.go, switch.go, disk.go, damage.go,
// cleanup.go.
package chaos
