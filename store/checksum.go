package store

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Engines keep a record's value sealed, as the CRC-32C of its key and value, 4
// bytes big-endian, followed by the value: what a database checks by itself ends
// short of what a record was, and whose it was.

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum returns the CRC-32C of a key and its value.
func Checksum(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
}

// Seal returns the value of a record behind its checksum.
func Seal(record Record) []byte {
	sum := Checksum([]byte(record.Key), record.Value)
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(record.Value)), sum), record.Value...)
}

// Unseal returns the value that Seal has sealed, a part of sealed, or ErrCorrupt.
func Unseal(key, sealed []byte) (value []byte, err error) {
	if len(sealed) < 4 || binary.BigEndian.Uint32(sealed) != Checksum(key, sealed[4:]) {
		return nil, fmt.Errorf("%s: %w", key, ErrCorrupt)
	}
	return sealed[4:], nil
}
