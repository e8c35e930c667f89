// Package store keeps what a node must not lose, in one data directory: batches,
// and records of bytes under keys. It executes the operations of wire.Op as
// atomic, ordered commits, and says when they are synced.
//
// It knows nothing of queues, groups, rings, connections or the protocol. Which
// batches may go, what a record means, and what to do about damage is for its user
// to say.
//
// The nouns:
//
//   - A [Store] is an open data directory; [Recovered] is what was found in it.
//   - A commit is a list of operations that are there as a whole or not at all. A
//     group is the commits that share their fsyncs; groups are numbered, upwards over
//     the life of the directory.
//   - The meta instance is the Badger instance that holds the records.
//   - A segment is a Badger instance of its own that holds batches of all
//     partitions. The head is the one that is written; the others are sealed, opened
//     on demand, and dropped whole.
//   - The index says, in memory, which offsets are live in which segment. It grows
//     with lanes and with gaps, never with batches or messages (P8).
//
// # The directory
//
//	LOCK                 held while the store is open
//	identity[.copy]      node, boot number
//	watermark            what was confirmed: a lower bound of what Open must find
//	meta/                records
//	segments/00000001/   batches; "summary" in a sealed one, "unused" in one that is not yet the head
//	segments/*.del       being removed
//	aside/               what did not open, kept for people
//	damaged              what was reported as damaged and not yet acted upon
//	ballast              removed at Open when the disk is full
//
// # What comes before what
//
//   - One goroutine, the committer, writes. It waits for the commit under way first
//     and takes what has queued up then, so groups grow with load.
//   - Of a group the batches are synced before the records, and the callbacks come
//     after both, in order. A group of which only the batches are there after a
//     crash is left out at Open.
//   - Each transaction carries its group's number, and what the other instance must
//     have. The watermark is written after the syncs and before the callbacks. An
//     instance that comes back with less was damaged (Badger cuts a damaged log
//     silently), and Open says so.
//   - A boot number is on disk before Open returns. Each boot begins a new head, so
//     that old files are only read.
//   - A segment is dropped by: an intent in meta, the watermark without it, rename,
//     removal, intent deleted. Badger's Delete and value-log GC are never used on
//     batches: space comes back late, and deleted keys come back too.
//   - What is freed is known in memory only. After a boot it is there again, until
//     its owner frees it again.
//
// # Damage
//
// Every batch and record is checked on each read against a checksum that covers its
// key; what fails is reported and never returned (P9). A batch that is found damaged
// counts as not held, so that a good copy is taken, and wins. The scrubber re-reads
// all of it, once soon after Open and then slowly.
//
// # Caveats
//
//   - A commit of more than about 1 MiB, or 10,000, of records takes several
//     transactions of meta. After a crash before its callback, it may be there up to some operation.
//   - The free space is looked at before each group. A process that fills the last
//     bytes of the disk within one group can still kill this one (the files are mapped).
//     Options.Reserve must be more than what others write in a second or so.
//   - With SyncInterval a crash of the machine can take anything that was not yet
//     written back; the next Open reports DamagedAll.
//   - Damage to a record is noticed when it is read, by the scrubber within a pass, or at Open.
//
// Begin with options.go and store.go, then committer.go (how a commit is written)
// and open.go (what is made of a directory); segments.go, keeper.go and scrub.go
// are what happens in the background.
package store
