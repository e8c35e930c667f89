package core

// lineChunk is how many items a chunk of a line has room for.
const lineChunk = 256

// line is what waits for its turn, first in, first out, in chunks: so a long line costs
// no copying and gives its memory back as it gets shorter.
type line struct {
	chunks [][]Item // none is empty
	len    int
}

func (l *line) push(it *Item) {
	last := len(l.chunks) - 1
	if last < 0 || len(l.chunks[last]) == cap(l.chunks[last]) {
		size := lineChunk
		if last < 0 {
			size = 8 // a short line is the common case
		}
		l.chunks = append(l.chunks, make([]Item, 0, size))
		last++
	}
	l.chunks[last] = append(l.chunks[last], *it)
	l.len++
}

// each calls do for all items in order, until it says no.
func (l *line) each(do func(*Item) bool) {
	for _, chunk := range l.chunks {
		for i := range chunk {
			if !do(&chunk[i]) {
				return
			}
		}
	}
}

// drop takes n items off the front.
func (l *line) drop(n int) {
	l.len -= n
	for n > 0 {
		first := l.chunks[0]
		if n < len(first) {
			clear(first[:n])
			l.chunks[0] = first[n:]
			return
		}
		n -= len(first)
		l.chunks[0] = nil
		l.chunks = l.chunks[1:]
	}
	if l.len == 0 {
		l.chunks = nil
	}
}

// remove takes out all items for which take says yes.
func (l *line) remove(take func(*Item) bool) {
	var rest line
	l.each(func(it *Item) bool {
		if !take(it) {
			rest.push(it)
		}
		return true
	})
	if rest.len < l.len {
		*l = rest
	}
}
