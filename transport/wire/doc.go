// Package wire holds the nouns and messages of meshq that travel between
// processes or are stored on disk: positions, lanes, batches, runs, receipts,
// requests, answers and stored records. It is bytes only: it knows nothing of
// connections, of Badger or of the protocol that gives the messages a meaning.
//
// Its nouns are Position (partition, lane, offset), Batch (consecutive messages
// of a lane, encoded once by a client and carried verbatim ever after), Runs (a
// set of offsets), Receipt (names one delivery) and Message (what a frame
// carries).
//
// Open position.go first, then batch.go, then message.go.
package wire
