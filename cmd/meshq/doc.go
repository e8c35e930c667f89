// Meshq is the one binary of meshq: it runs nodes (serve, dev) and talks to them
// (send, receive, queue, node, ring).
//
// This package wires the others and holds what only people see: flags, settings
// from environment and YAML, tables, JSON lines, hints and exit codes. It holds
// nothing of the protocol.
//
// Its nouns: setting (one value that can come from flag, environment or file),
// failure (an error with what was being done, a hint that can be typed and an
// exit code), printer (tables for people, JSON for programs).
//
// Rules of every command: data goes to stdout, talk to stderr. With --json stdout
// has one object a line and nothing else. Exit codes: 0 done, 1 failed, 2 wrong
// usage, 3 nothing received within the wait. The first SIGINT or SIGTERM ends a
// command in good order, the second at once.
//
// Start reading at root.go; then serve.go for a node, send.go and receive.go for
// a client.
package main
