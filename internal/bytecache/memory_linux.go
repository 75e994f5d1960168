package bytecache

import "syscall"

// hugeFrom is from which size on the memory is asked for in pages of 2 MiB: with
// small ones, a processor finds each record's page by another access to memory.
const hugeFrom = 256 << 20

// allocate returns memory outside of Go's heap, or in it where the system gives
// none.
func allocate(size int) []byte {
	if size <= 0 {
		return nil
	}
	memory, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_ANON|syscall.MAP_PRIVATE|syscall.MAP_NORESERVE)
	if err != nil {
		return make([]byte, size)
	}
	if size >= hugeFrom {
		_ = syscall.Madvise(memory, syscall.MADV_HUGEPAGE) // small ones do as well
	}
	return memory
}

// release gives memory back that allocate has returned.
func release(memory []byte) {
	if len(memory) > 0 {
		_ = syscall.Munmap(memory) // it does nothing to Go's heap
	}
}
