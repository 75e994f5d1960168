package testserver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"reflect"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"
)

// SetClock has the wall clock of the server's own processes be so many seconds
// ahead of the machine's, or behind it. Their other clocks are as they were.
func (s *Server) SetClock(_ testing.TB, ahead int) { s.ahead = ahead }

// shifted is a time of the clock that was set, and of the one that can't be.
var shifted atomic.Pointer[time.Time]

func shiftedNow() time.Time {
	from := *shifted.Load()
	return from.Add(time.Since(from)) // which asks for the monotonic clock alone
}

// setClock has all of this process take shiftedNow for time.Now. There is no other
// way to give one process a clock of its own: Go asks the kernel's vDSO for the time,
// and time namespaces have one wall clock.
func setClock(ahead string) error {
	seconds, err := strconv.ParseInt(ahead, 10, 32)
	if err != nil {
		return err
	}
	begin := time.Now()
	from := begin
	// The first word of a Time with a monotonic reading has the seconds of the wall
	// clock above 30 bits of nanoseconds.
	*(*int64)(unsafe.Pointer(&from)) += seconds << 30
	shifted.Store(&from)
	if err := jump(reflect.ValueOf(time.Now).Pointer(), reflect.ValueOf(shiftedNow).Pointer()); err != nil {
		return err
	}
	now := time.Now()
	if took := time.Since(begin); now.Sub(begin) > took ||
		now.Round(0).Sub(begin.Round(0)).Round(time.Second) != (time.Duration(seconds)*time.Second+took).Round(time.Second) {
		return errors.New("the clock can't be set in this version of Go")
	}
	return nil
}

// jump has a function begin with a jump to another one.
func jump(from, to uintptr) error {
	const size = 5 // JMP rel32, from its end
	distance := int64(to) - int64(from) - size
	if distance != int64(int32(distance)) {
		return fmt.Errorf("the function is more than %d bytes away", math.MaxInt32)
	}
	code := binary.LittleEndian.AppendUint32([]byte{0xe9}, uint32(int32(distance)))
	memory, err := os.OpenFile("/proc/self/mem", os.O_WRONLY, 0) // it takes what is written to code, too
	if err != nil {
		return err
	}
	defer memory.Close()
	_, err = memory.WriteAt(code, int64(from))
	return err
}
