package main

import (
	"encoding/binary"
	"os"
)

// stayAwake has no processor sleep until the program ends, and reports whether it
// could: that takes root, and Linux. To wake one costs the server that sends an
// answer up to 8 µs in a virtual machine, and the slower of two servers pays that
// more often.
func stayAwake() bool {
	// The file is kept open: what was asked for ends when it is closed.
	latency, err := os.OpenFile("/dev/cpu_dma_latency", os.O_WRONLY, 0)
	if err != nil {
		return false
	}
	awake = latency
	return binary.Write(latency, binary.NativeEndian, int32(0)) == nil // µs
}

var awake *os.File
