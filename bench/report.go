package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// outcome is all that a run has found; results.json holds it.
type outcome struct {
	Machine string  `json:"machine"`
	Date    string  `json:"date"`
	Commit  string  `json:"commit"`
	Command string  `json:"command"`
	Rounds  int     `json:"rounds"`
	Seconds float64 `json:"seconds"`
	Awake   bool    `json:"awake"` // no processor was let sleep

	Comparisons []ratios       `json:"comparisons"`
	Cases       []result       `json:"cases"`
	Starts      []start        `json:"starts"`
	Race        *raceResult    `json:"race,omitempty"`
	Streams     *streamsResult `json:"streams,omitempty"`
	Nodes       *nodesResult   `json:"nodes,omitempty"`

	Instructions *instructionsResult `json:"instructions,omitempty"`
}

// result is all measurements of a case.
type result struct {
	Group        string        `json:"group"`
	Name         string        `json:"name"`
	Algorithm    string        `json:"algorithm,omitempty"`
	Secret       string        `json:"secret,omitempty"`
	Use          string        `json:"use,omitempty"`
	Credentials  int           `json:"credentials,omitempty"`
	Measurements []measurement `json:"measurements"`
}

// ratios is what a comparison gave, a pair at a time.
type ratios struct {
	Name         string    `json:"name"`
	Metric       string    `json:"metric"`
	Limit        float64   `json:"limit,omitempty"`
	A            []float64 `json:"a"`
	B            []float64 `json:"b"`
	Ratios       []float64 `json:"ratios"`
	Instructions []float64 `json:"instruction_ratios,omitempty"`
}

// start is the milliseconds until a store was open, and until a request of a
// client of it was served.
type start struct {
	Credentials int       `json:"credentials"`
	Served      []float64 `json:"served_ms"`
	Opened      []float64 `json:"opened_ms"`
}

func newOutcome(opts options) *outcome {
	commit := "unknown"
	if out, err := exec.Command("git", "describe", "--always", "--dirty").Output(); err == nil { //nolint:noctx // returns at once
		commit = strings.TrimSpace(string(out))
	}
	return &outcome{
		Machine: machine(), Date: time.Now().Format(time.DateOnly), Commit: commit,
		Command: commandLine(),
		Rounds:  opts.rounds, Seconds: opts.seconds,
	}
}

// commandLine returns what starts a run like this one, for a shell. Where it writes to
// is of this machine alone.
func commandLine() string {
	words := []string{"go run ."}
	args := os.Args[1:]
	if n := slices.Index(args, "-o"); n >= 0 {
		args = slices.Delete(slices.Clone(args), n, min(n+2, len(args)))
	}
	for _, arg := range args {
		if strings.ContainsAny(arg, " |()*?$^") {
			arg = "'" + arg + "'"
		}
		words = append(words, arg)
	}
	return strings.Join(words, " ")
}

// write writes the results in all their forms.
func (o *outcome) write(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(o, "", "\t")
	if err != nil {
		return err
	}
	write := func(name, text string) {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	write("results.json", string(raw)+"\n") // first: the others can be made of it
	write("results.md", o.markdown())
	write("results.svg", o.plot())
	if err != nil {
		return err
	}
	fmt.Println(o.markdown())
	return nil
}

func (o *outcome) markdown() string {
	var text strings.Builder
	awake := ""
	if o.Awake {
		awake = ", no processor asleep"
	}
	fmt.Fprintf(&text, "# Results\n\n%s\n\n%s, commit %s: `%s`, %d rounds of %g s a case%s\n\n![plot](results.svg)\n",
		o.Machine, o.Date, o.Commit, o.Command, o.Rounds, o.Seconds, awake)
	o.writeComparisons(&text)
	o.writeInstructions(&text)
	for _, group := range o.groups() {
		o.writeGroup(&text, group)
	}
	o.writeGrowth(&text, growthGuard)
	o.writeGrowth(&text, growthToken)
	o.writeStarts(&text)
	o.writeStreams(&text)
	o.writeNodes(&text)
	if r := o.Race; r != nil {
		fmt.Fprintf(&text, "\n## %s\n\nOf %s requests that began after the reply to a revocation, **%d** were accepted. Before the reply, %s were accepted and %s refused, in %s tries.\n",
			title(raceName), grouped(r.After), r.Accepted, grouped(r.Before), grouped(r.During), grouped(r.Tries))
	}
	return text.String()
}

// groups returns those of the cases, without the growth series.
func (o *outcome) groups() []string {
	var groups []string
	for _, r := range o.Cases {
		if r.Credentials == 0 && !slices.Contains(groups, r.Group) {
			groups = append(groups, r.Group)
		}
	}
	return groups
}

func (o *outcome) writeComparisons(text *strings.Builder) {
	if len(o.Comparisons) == 0 {
		return
	}
	text.WriteString("\n## Comparisons\n\nCPU in µs, p99 in ms.\n\n" +
		"| what | of | median ratio | 95 % interval | at most | pairs | medians | instructions |\n| --- | --- | ---: | --- | ---: | ---: | --- | ---: |\n")
	for _, c := range o.Comparisons {
		low, high := interval(c.Ratios)
		limit, counted := "", ""
		if c.Limit > 0 {
			limit = strconv.FormatFloat(c.Limit, 'f', 2, 64)
			if high > c.Limit {
				limit += " ✗"
			}
		}
		if len(c.Instructions) > 0 {
			counted = strconv.FormatFloat(median(c.Instructions), 'f', 3, 64)
		}
		fmt.Fprintf(text, "| %s | %s | **%.3f** | %.3f–%.3f | %s | %d | %s / %s | %s |\n",
			c.Name, c.Metric, median(c.Ratios), low, high, limit, len(c.Ratios), short(median(c.A)), short(median(c.B)), counted)
	}
}

// column is one of a table of cases.
type column struct {
	title string
	of    func(measurement) float64
}

var columns = []column{
	{"requests/s", func(m measurement) float64 { return m.PerSecond }},
	{"p50, ms", func(m measurement) float64 { return m.P50 }},
	{"p99, ms", func(m measurement) float64 { return m.P99 }},
	{"allocations", func(m measurement) float64 { return m.Allocations }},
	{"KiB allocated", func(m measurement) float64 { return m.Bytes / 1024 }},
	{"instructions", func(m measurement) float64 { return m.Instructions }},
	{"RSS, MiB", func(m measurement) float64 { return m.Resident }},
	{"database: CPU, µs", func(m measurement) float64 { return m.DatabaseCPU }},
	{"statements", func(m measurement) float64 { return m.Statements }},
}

// columns returns those that some case of the group has figures for.
func (o *outcome) columns(group string) []column {
	return slices.DeleteFunc(slices.Clone(columns), func(c column) bool {
		return !slices.ContainsFunc(o.Cases, func(r result) bool { return r.Group == group && median(r.values(c.of)) > 0 })
	})
}

func (o *outcome) writeGroup(text *strings.Builder, group string) {
	fmt.Fprintf(text, "\n## %s\n\n| case | CPU, µs | min–max |", title(group))
	columns := o.columns(group)
	rule := "\n| --- | ---: | --- |" + strings.Repeat(" ---: |", len(columns)) + "\n"
	if group == tokens {
		text.WriteString(" signature | hash of the secret |")
		rule = "\n| --- | ---: | --- | --- | --- |" + strings.Repeat(" ---: |", len(columns)) + "\n"
	}
	for _, column := range columns {
		fmt.Fprintf(text, " %s |", column.title)
	}
	text.WriteString(rule)
	for _, r := range o.Cases {
		if r.Group != group {
			continue
		}
		cpu := r.values(cpuPerRequest.of)
		fmt.Fprintf(text, "| %s | **%s** | %s–%s |", r.Name, short(median(cpu)), short(slices.Min(cpu)), short(slices.Max(cpu)))
		if group == tokens {
			fmt.Fprintf(text, " %s | %s |", r.Algorithm, r.Secret)
		}
		for _, column := range columns {
			fmt.Fprintf(text, " %s |", short(median(r.values(column.of))))
		}
		text.WriteString("\n")
	}
}

func (r *result) values(of func(measurement) float64) []float64 {
	values := make([]float64, len(r.Measurements))
	for i, m := range r.Measurements {
		values[i] = of(m)
	}
	return values
}

// sizes returns those of the stores of the growth series.
func (o *outcome) sizes() []int {
	var sizes []int
	for _, r := range o.Cases {
		if r.Credentials > 0 && !slices.Contains(sizes, r.Credentials) {
			sizes = append(sizes, r.Credentials)
		}
	}
	return sizes
}

// at returns the median of a case of the growth series, if it was measured.
func (o *outcome) at(group, use string, credentials int, of func(measurement) float64) (float64, bool) {
	for _, r := range o.Cases {
		if r.Group == group && r.Use == use && r.Credentials == credentials {
			return median(r.values(of)), true
		}
	}
	return 0, false
}

func (o *outcome) writeGrowth(text *strings.Builder, group string) {
	sizes := o.sizes()
	if !slices.ContainsFunc(o.Cases, func(r result) bool { return r.Group == group }) {
		return
	}
	fmt.Fprintf(text, "\n## %s\n\nCPU per request in µs by the number of credentials, with a tenth as many revoked, and as many revoked tokens.\n\n| |", title(group))
	for _, n := range sizes {
		fmt.Fprintf(text, " %s |", grouped(n))
	}
	text.WriteString("\n| --- |" + strings.Repeat(" ---: |", len(sizes)) + "\n")
	row := func(title, use string, of func(measurement) float64) {
		if !slices.ContainsFunc(o.Cases, func(r result) bool { return r.Group == group && r.Use == use }) {
			return
		}
		fmt.Fprintf(text, "| %s |", title)
		for _, n := range sizes {
			value, _ := o.at(group, use, n, of)
			fmt.Fprintf(text, " %s |", short(value))
		}
		text.WriteString("\n")
	}
	for _, use := range growthUses(group) {
		row(use.name, use.name, cpuPerRequest.of)
	}
	row("RSS in MiB, uniform", "uniform", func(m measurement) float64 { return m.Resident })
}

func (o *outcome) writeStarts(text *strings.Builder) {
	if len(o.Starts) == 0 {
		return
	}
	text.WriteString("\n## Start\n\nMilliseconds from the start of the process to the first request that the guard has let through, and for the store alone to open the same directory.\n\n" +
		"| credentials | first request | min–max | store alone | min–max |\n| ---: | ---: | --- | ---: | --- |\n")
	for _, s := range o.Starts {
		fmt.Fprintf(text, "| %s | **%s** | %s–%s | %s | %s–%s |\n", grouped(s.Credentials),
			short(median(s.Served)), short(slices.Min(s.Served)), short(slices.Max(s.Served)),
			short(median(s.Opened)), short(slices.Min(s.Opened)), short(slices.Max(s.Opened)))
	}
}

// short writes a number with three digits that count, and nothing for none.
func short(value float64) string {
	switch {
	case value == 0:
		return ""
	case value >= 100:
		return grouped(int(value + 0.5))
	case value >= 10:
		return strconv.FormatFloat(value, 'f', 1, 64)
	}
	return strconv.FormatFloat(value, 'f', 2, 64)
}

// grouped writes a number with commas between its thousands.
func grouped(n int) string {
	text := strconv.Itoa(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func title(text string) string { return strings.ToUpper(text[:1]) + text[1:] }
