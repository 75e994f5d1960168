package main

import (
	"encoding/binary"
	"os"
)

// stayAwake has no processor sleep until what it returns is closed; nil where it may
// not ask for that, which takes root, and Linux. To wake one costs the server that
// sends an answer up to 8 µs in a virtual machine, and the slower of two servers pays
// that more often.
func stayAwake() *os.File {
	latency, err := os.OpenFile("/dev/cpu_dma_latency", os.O_WRONLY, 0)
	if err != nil {
		return nil
	}
	if binary.Write(latency, binary.NativeEndian, int32(0)) != nil { // µs
		_ = latency.Close()
		return nil
	}
	return latency
}
