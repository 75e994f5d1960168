package bytecache

// ring is a part of the memory in which records lie in the order in which they
// came. None goes across the end: where the next one would, it goes to the start.
type ring struct {
	start, end  int // of the part
	first, next int // where the oldest is, and where the next one goes
	last        int // where those before the start end, or 0 where none lies there
}

func newRing(start, end int) ring { return ring{start: start, end: end, first: start, next: start} }

func (r *ring) size() int { return r.end - r.start }

// used returns how many bytes the records take.
func (r *ring) used() int {
	if r.last != 0 {
		return r.last - r.first + r.next - r.start
	}
	return r.next - r.first
}

// reserve returns where the next record goes, if so many bytes are free there.
func (r *ring) reserve(size int) (at int, ok bool) {
	switch {
	case r.last != 0:
		ok = r.first-r.next >= size
	case r.end-r.next >= size:
		ok = true
	case r.first-r.start >= size:
		r.last, r.next = r.next, r.start
		ok = true
	}
	if !ok {
		return 0, false
	}
	at = r.next
	r.next += size
	return at, true
}

// free gives back the place of the oldest record.
func (r *ring) free(size int) {
	r.first += size
	switch {
	case r.first == r.last:
		r.first, r.last = r.start, 0
	case r.last == 0 && r.first == r.next:
		r.first, r.next = r.start, r.start
	}
}
