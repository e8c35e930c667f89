// Package transport is connections: dialing and accepting, TLS, hello, frames,
// requests and answers, keepalive, and bounds on what a connection may hold. It
// carries the messages of transport/wire and knows nothing of what they mean, of
// nodes or of stores.
//
// Its nouns are Conn (one connection, the same on both sides), Handler (takes what
// arrives), Options (limits and times) and TLSFiles (certificates that are read
// again when they change).
//
// Ordering: frames are written in the order in which Send, Go, Call and Reply were
// called, and handed to the Handler in the order in which they arrived. Closed
// comes last, once.
//
// Two goroutines belong to a connection: the reader, which decodes and calls the
// Handler, and the writer, which gathers what is queued into few system calls and
// watches over the other side's life. Done is closed when both have ended.
//
// Open frame.go first, then conn.go, then dial.go.
package transport
