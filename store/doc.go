// Package store keeps what a node must not lose: batches and records, on Badger,
// with its own group commit. It executes operations and knows nothing of their meaning: no
// queue, group, ring, connection or protocol.
package store
