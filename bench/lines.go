package main

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
)

// bytes returns between which bytes of its file a request reads its lines.
func (r *request) bytes(s slice) (first, last int64, err error) {
	info, err := os.Stat(r.lines)
	if err != nil {
		return 0, 0, err
	}
	last = info.Size()
	if r.firstN > 0 {
		if last, err = endOfLine(r.lines, r.firstN); err != nil {
			return 0, 0, err
		}
	}
	switch r.order {
	case fromAnywhere:
		// It goes on at the beginning, so that some lines are sent more often.
		first = rand.Int64N(last * 9 / 10) //nolint:gosec // G404: chance is enough
	case once:
		part, of := int64(s.part), int64(s.of)
		if r.half > 0 {
			part, of = part+of*int64(r.half-1), of*2
		}
		first, last = last*part/of, last*(part+1)/of
	}
	return first, last, nil
}

// endOfLine returns where the nth line ends, or the whole file.
func endOfLine(path string, n int) (int64, error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	end := int64(0)
	scanner := bufio.NewScanner(file)
	for ; n > 0 && scanner.Scan(); n-- {
		end += int64(len(scanner.Bytes())) + 1
	}
	return end, scanner.Err()
}

func firstLine(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	scanner := bufio.NewScanner(file)
	if !scanner.Scan() {
		return "", fmt.Errorf("%s is empty", path)
	}
	return scanner.Text(), nil
}

// lineOf returns a function that reads the first line of a file.
func lineOf(path string) func() (string, error) {
	return func() (string, error) { return firstLine(path) }
}

// writeZipf writes lines that were drawn from the first n of a file, the few
// at its head far more often than the others, unless an earlier run has.
func writeZipf(from, to string, n, draws int) error {
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	type span struct{ start, length int64 }
	spans := make([]span, 0, n)
	scanner := bufio.NewScanner(source)
	for at := int64(0); len(spans) < n && scanner.Scan(); {
		length := int64(len(scanner.Bytes())) + 1
		spans = append(spans, span{at, length})
		at += length
	}
	if scanner.Err() != nil {
		return scanner.Err()
	}
	chance := rand.New(rand.NewPCG(1, 2))                               //nolint:gosec // G404: the same draws in each run
	zipf := rand.NewZipf(chance, zipfExponent, 1, uint64(len(spans)-1)) //nolint:gosec // G115: there are some
	partial := to + ".partial"
	err = writeFile(partial, draws, func(int) (string, error) {
		s := spans[zipf.Uint64()]
		line := make([]byte, s.length-1)
		_, err := source.ReadAt(line, s.start)
		return string(line), err
	})
	if err != nil {
		return err
	}
	return os.Rename(partial, to)
}

// zipfExponent is near to 1, as the popularity of web pages and clients is;
// math/rand needs it above.
const zipfExponent = 1.1

// writeFile writes n lines.
func writeFile(path string, n int, line func(int) (string, error)) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	out := bufio.NewWriter(file)
	for i := range n {
		text, err := line(i)
		if err != nil {
			return err
		}
		_, _ = out.WriteString(text + "\n") // Flush returns the error
	}
	if err := out.Flush(); err != nil {
		return err
	}
	return file.Close()
}

// writeGarbage writes what is no token of this server: random text in the form
// of tokens, and tokens whose signatures are wrong.
func writeGarbage(tokens, garbage, forged string) error {
	token, err := firstLine(tokens)
	if err != nil {
		return err
	}
	parts := strings.Split(token, ".")
	err = writeFile(garbage, 10_000, func(int) (string, error) {
		return randomText(len(parts[0])) + "." + randomText(len(parts[1])) + "." + randomText(len(parts[2])), nil
	})
	if err != nil {
		return err
	}
	return writeFile(forged, 10_000, func(int) (string, error) {
		// 86 characters hold 4 bits more than 64 bytes; an A leaves them zero.
		return parts[0] + "." + parts[1] + "." + randomText(len(parts[2])-1) + "A", nil
	})
}

func randomText(n int) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	text := make([]byte, n)
	for i := range text {
		text[i] = alphabet[rand.IntN(len(alphabet))] //nolint:gosec // G404: chance is enough
	}
	return string(text)
}

func splitLines(text []byte) []string {
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}
