package main

import (
	"math"
	"slices"
)

func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// percentile returns the least value that so many of a hundred do not exceed.
func percentile(values []float64, of float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[int(math.Ceil(of/100*float64(len(sorted))))-1]
}

// interval returns between which of the values the true median lies, with a
// confidence of at least 95 %, whatever their distribution: of n values, as many
// as a coin thrown n times shows heads lie below it. Fewer than six can't say
// so much; all of their range is returned.
func interval(values []float64) (low, high float64) {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	rank, tail := 0, 0.0
	// The chance of rank heads; its logarithm, as 0.5 to the power of 2,000 is no float64.
	for log := float64(n) * math.Log(0.5); rank < n/2; rank++ {
		if tail += math.Exp(log); tail > 0.025 {
			break
		}
		log += math.Log(float64(n-rank) / float64(rank+1))
	}
	at := max(rank-1, 0)
	return sorted[at], sorted[n-1-at]
}
