package bytecache

import (
	"fmt"
	"syscall"
)

// hugeFrom is from which size on the memory is asked for in pages of 2 MiB: with
// small ones, a processor finds each record's page by another access to memory.
const hugeFrom = 256 << 20

// allocate returns memory outside of Go's heap.
func allocate(size int) ([]byte, error) {
	memory, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_ANON|syscall.MAP_PRIVATE|syscall.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("asking the system for %d bytes of memory: %w", size, err)
	}
	if size >= hugeFrom {
		_ = syscall.Madvise(memory, syscall.MADV_HUGEPAGE) // small ones do as well
	}
	return memory, nil
}

// release gives memory back that allocate has returned, or none.
func release(memory []byte) {
	if len(memory) > 0 {
		_ = syscall.Munmap(memory)
	}
}
