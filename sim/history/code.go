package history

// Codes of errors that a client finds itself. Those that nodes answer are named by
// [CodeName].
const (
	CodeUnreachable = "unreachable" // no node could be asked
	CodeNotSent     = "not-sent"    // the time was over before it was the message's turn
	CodeCanceled    = "canceled"    // the program stopped waiting
	CodeClosed      = "closed"      // the client was closed
	CodeLost        = "lost"        // the connection was lost before the answer
)

// codes are the names of the codes of the wire protocol, by number, and what they may
// mean to a producer whose messages are well made.
var codes = [...]struct {
	name string
	is   codeIs
}{
	1: {"internal", wrong}, 2: {"quorum", unknown}, 3: {"overloaded", full}, 4: {"disk-full", full}, 5: {"no-queue", wrong}, 6: {"no-group", wrong},
	7: {"too-large", wrong}, 8: {"bad-request", wrong}, 9: {"not-owner", retry}, 10: {"stale-receipt", retry}, 11: {"bad-receipt", wrong},
	12: {"exists", wrong}, 13: {"not-ready", retry}, 14: {"wrong-mesh", wrong}, 15: {"version", wrong}, 16: {"lane-conflict", retry},
	17: {"stale-sequence", unknown}, 18: {"timeout", unknown}, 19: {"unauthorized", wrong}, 20: {"older-data", wrong},
}

// codeIs is what a code means to a client that does nothing wrong.
type codeIs int

const (
	unlisted codeIs = iota // no name of this package
	unknown                // it may have happened
	full                   // it did not: there is no room
	retry                  // it did not: now or here
	wrong                  // no right answer to a good request
	own                    // the client's own end
)

// CodeName is the word for a code of the wire protocol.
func CodeName(code uint16) string {
	if int(code) < len(codes) && codes[code].name != "" {
		return codes[code].name
	}
	return "unlisted"
}

// meaning is what a code means; "" is a success.
func meaning(code string) codeIs {
	switch code {
	case CodeUnreachable, CodeNotSent:
		return retry
	case CodeLost:
		return unknown
	case CodeCanceled, CodeClosed:
		return own
	}
	for _, c := range codes {
		if c.name != "" && c.name == code {
			return c.is
		}
	}
	return unlisted
}
