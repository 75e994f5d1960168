package bytecache

import (
	"encoding/binary"
	"math"
)

// A record is its head, its key and its value. The head: where each number is,
// little-endian.
const (
	headHash    = 0
	headKey     = 8  // the key's length, two bytes
	headLane    = 10 // one byte
	headDropped = 11 // 1 where it is not found any more
	headValue   = 12 // the value's length, four bytes
	headSize    = 16

	alignment = 16
	maxKey    = math.MaxUint16
)

func recordSize(key, value int) int {
	return (headSize + key + value + alignment - 1) / alignment * alignment
}

func writeRecord(to []byte, hash uint64, lane uint8, key, value string) {
	binary.LittleEndian.PutUint64(to[headHash:], hash)
	binary.LittleEndian.PutUint16(to[headKey:], uint16(len(key))) //nolint:gosec // G115: at most maxKey
	to[headLane], to[headDropped] = lane, 0
	binary.LittleEndian.PutUint32(to[headValue:], uint32(len(value))) //nolint:gosec // G115: less than the memory
	copy(to[headSize+copy(to[headSize:], key):], value)
}

func markDropped(record []byte) { record[headDropped] = 1 }

func hashOf(record []byte) uint64   { return binary.LittleEndian.Uint64(record[headHash:]) }
func laneOf(record []byte) uint8    { return record[headLane] }
func isDropped(record []byte) bool  { return record[headDropped] != 0 }
func keyOf(record []byte) []byte    { return record[headSize : headSize+keyLength(record)] }
func sizeOf(record []byte) int      { return recordSize(keyLength(record), valueLength(record)) }
func keyLength(record []byte) int   { return int(binary.LittleEndian.Uint16(record[headKey:])) }
func valueLength(record []byte) int { return int(binary.LittleEndian.Uint32(record[headValue:])) }

func valueOf(record []byte) []byte {
	start := headSize + keyLength(record)
	return record[start : start+valueLength(record)]
}
