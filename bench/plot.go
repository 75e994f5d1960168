package main

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// Measures of the plot, in pixels.
const (
	plotWidth  = 900
	labelWidth = 380
	barHeight  = 18
	lineHeight = 260
	fromEdge   = 60
)

var colours = []string{"#1f6feb", "#d4731a", "#2a8a4a", "#a23b9a", "#7a7a7a"}

// drawing is an SVG that grows downwards.
type drawing struct {
	body strings.Builder
	y    float64
}

// plot draws the CPU per request: bars for the cases, lines for the growth.
func (o *outcome) plot() string {
	d := &drawing{y: 30}
	d.text(10, d.y, "start", "bold", "CPU per request of the server process, µs (median and range of the rounds)")
	for _, group := range o.groups() {
		d.bars(group, o.Cases)
	}
	for _, group := range []string{growthGuard, growthToken} {
		d.lines(o, group)
	}
	d.y += 30
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %.0f" font-family="sans-serif" font-size="12">
<rect width="100%%" height="100%%" fill="white"/>
%s</svg>
`, plotWidth, d.y, &d.body)
}

func (d *drawing) text(x, y float64, anchor, weight, text string) {
	fmt.Fprintf(&d.body, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" font-weight=\"%s\">%s</text>\n", x, y, anchor, weight, html.EscapeString(text))
}

func (d *drawing) line(x1, y1, x2, y2 float64, colour string, width float64) {
	fmt.Fprintf(&d.body, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" stroke-width=\"%g\"/>\n", x1, y1, x2, y2, colour, width)
}

// bars draws a group. A bar too long for its neighbours to be seen is cut, and
// its number tells.
func (d *drawing) bars(group string, cases []result) {
	cases = slices.DeleteFunc(slices.Clone(cases), func(r result) bool { return r.Group != group })
	var medians []float64
	for _, r := range cases {
		medians = append(medians, median(r.values(cpuPerRequest.of)))
	}
	longest := slices.Max(medians)
	if typical := median(medians); longest > 6*typical {
		longest = 6 * typical
	}
	scale := (plotWidth - labelWidth - 120) / longest
	d.y += 34
	d.text(10, d.y, "start", "bold", title(group))
	for i, r := range cases {
		d.y += barHeight + 4
		length := min(medians[i], longest) * scale
		colour := "#9aa4b0"
		if strings.HasPrefix(r.Name, "bearer_auth") || strings.HasPrefix(r.Name, "this plugin") || group == changes || group == twoStores {
			colour = colours[0]
		}
		d.text(labelWidth-8, d.y, "end", "normal", r.Name)
		fmt.Fprintf(&d.body, "<rect x=\"%d\" y=\"%.1f\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>\n", labelWidth, d.y-13, length, barHeight, colour)
		cpu := r.values(cpuPerRequest.of)
		if low, high := slices.Min(cpu), slices.Max(cpu); high <= longest {
			d.line(labelWidth+low*scale, d.y-4, labelWidth+high*scale, d.y-4, "black", 1)
			length = max(length, high*scale)
		}
		number := short(medians[i])
		if medians[i] > longest {
			number = "… " + number
		}
		d.text(labelWidth+length+6, d.y, "start", "normal", number)
	}
}

// lines draws a growth series, by the logarithm of the size.
func (d *drawing) lines(o *outcome, group string) {
	sizes := o.sizes()
	highest := 0.0
	for _, r := range o.Cases {
		if r.Group == group {
			highest = max(highest, median(r.values(cpuPerRequest.of)))
		}
	}
	if highest == 0 || len(sizes) < 2 {
		return
	}
	d.y += 34
	d.text(10, d.y, "start", "bold", title(group)+": by the number of credentials")
	top, bottom := d.y+20, d.y+20+lineHeight
	first, last := math.Log(float64(sizes[0])), math.Log(float64(sizes[len(sizes)-1]))
	x := func(n int) float64 {
		return fromEdge + (math.Log(float64(n))-first)/(last-first)*(plotWidth-fromEdge-220)
	}
	y := func(value float64) float64 { return bottom - value/highest*lineHeight }
	for part := range 5 {
		value := highest * float64(part) / 4
		d.line(fromEdge, y(value), plotWidth-220, y(value), "#dddddd", 1)
		d.text(fromEdge-8, y(value)+4, "end", "normal", fmt.Sprintf("%.0f", value))
	}
	for _, n := range sizes {
		d.text(x(n), bottom+18, "middle", "normal", grouped(n))
	}
	for i, use := range growthUses(group) {
		var points []string
		for _, n := range sizes {
			if value, ok := o.at(group, use.name, n, cpuPerRequest.of); ok {
				points = append(points, fmt.Sprintf("%.1f,%.1f", x(n), y(value)))
			}
		}
		if len(points) == 0 {
			continue
		}
		fmt.Fprintf(&d.body, "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"/>\n", strings.Join(points, " "), colours[i%len(colours)])
		d.line(plotWidth-200, top+float64(i)*20, plotWidth-180, top+float64(i)*20, colours[i%len(colours)], 3)
		d.text(plotWidth-172, top+float64(i)*20+4, "start", "normal", use.name)
	}
	d.y = bottom + 24
}
