package lru

import "testing"

func TestWhatWasNotUsedForLongestGoesFirst(t *testing.T) {
	c := New[string, int](10)
	c.Put("a", 1, 4)
	c.Put("b", 2, 4)
	c.Get("a")
	c.Put("c", 3, 4)
	if _, kept := c.Get("b"); kept {
		t.Error("b is kept, though it was not used for longest")
	}
	for key, want := range map[string]int{"a": 1, "c": 3} {
		if got, kept := c.Get(key); !kept || got != want {
			t.Errorf("%s is %d, kept %v", key, got, kept)
		}
	}
}

func TestTheCostsAreBoundedWhateverChanges(t *testing.T) {
	c := New[string, int](10)
	c.Put("a", 1, 4)
	c.Put("a", 2, 6) // not 10
	c.Put("b", 3, 4)
	if got, kept := c.Get("a"); !kept || got != 2 || c.Len() != 2 {
		t.Errorf("a is %d, kept %v, of %d", got, kept, c.Len())
	}
	c.Drop("a")
	c.Drop("a")
	c.Put("c", 4, 6)
	if _, kept := c.Get("b"); !kept {
		t.Error("what was dropped still counts")
	}
	c.Put("too large", 5, 11)
	if c.Len() != 0 {
		t.Errorf("%d entries are kept beside one that fills it alone", c.Len())
	}
}

func TestASmallerCacheDropsWhatWasNotUsedForLongest(t *testing.T) {
	c := New[string, int](2)
	c.Put("a", 1, 1)
	c.Put("b", 2, 1)
	c.Resize(1)
	if _, kept := c.Get("b"); !kept || c.Len() != 1 {
		t.Errorf("%d entries are kept, b among them: %v", c.Len(), kept)
	}
	c.Resize(2)
	c.Put("c", 3, 1)
	if c.Len() != 2 {
		t.Errorf("%d entries are kept, and there is room for 2", c.Len())
	}
}
