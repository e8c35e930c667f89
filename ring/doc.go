// Package ring says which nodes keep a partition. It is pure: equal tables give
// equal answers, in every node, in the client and in the simulator.
//
// It knows nothing of connections, of who is alive, of queues beyond their name,
// and of how the members of a ring are agreed on. It is not told when a node
// crashes, because a crash is not a ring change.
//
// The nouns:
//
//   - [NodeID] names a data directory, for ever.
//   - [Member] is a node with its zone and weight.
//   - [Table] is the list of members under a ring number. It is what nodes agree
//     on, store and send.
//   - [Ring] is a table made ready for lookups: immutable, safe for concurrent use.
//   - The preference list of a key ([PartitionKey]) is all members in one order.
//     Its first N are the home replicas of the partition, the rest its fallbacks.
//
// The order of the list depends on the key and the table only, never on how many
// nodes are asked for: what Preference returns for 3 begins what it returns for 5.
//
// # The walk
//
// A member of weight w has 256*w tokens on a circle of 64-bit numbers; token i is
// the xxhash64 of NodeID and i, big endian, 8 bytes each. The walk begins at the
// first token at or after the key and goes clockwise. Each node enters the list
// when its first token is met. Joining or leaving moves about 1/n of the replicas.
//
// # Zones take turns
//
// With two or more zones the list is a merge of one walk per zone. Replicas shall
// be in distinct zones, but a zone must not get more than its share of the weight:
// otherwise the first node of a brand-new zone would be a replica of every
// partition. So zones take turns, as in stride scheduling:
//
//   - The first place belongs to the zone of the first token met. Zones own first
//     places in proportion to their weight.
//   - A zone with share s of the weight that is not first has its first turn at
//     coin*(1-s)/s, where coin, in [0, 1), is the leading half of the xxhash64 of
//     the xxhash64 of the zone's name, and the key, big endian.
//   - The next turns of a zone are 1.25/s apart.
//   - The earliest turn gets the next place and gives it to the next node of that
//     zone's walk. A zone whose nodes are all listed is out.
//
// Were turns 1/s apart, each zone would hold exactly its share of every place. The
// factor 1.25 is the preference for distinct zones: a zone that is not yet in the
// list may get up to about 1.25 times its share before one that is gets a second
// place. Zones of similar weight (say 4, 3 and 3 nodes) therefore never share a
// partition until each has a replica of it, and a zone of one node beside a zone of
// nine holds about a quarter of the partitions at N = 2, not all of them.
//
// The arithmetic is on integers, as floating point may differ between processors.
//
// Begin with ring.go, function Preference; table.go is the list that is agreed on.
package ring
