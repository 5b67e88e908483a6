package sim

// Shrink takes faults out of a failing schedule, first many at once, until none of
// them can be spared: delta debugging. What is left still breaks the same promise.
func Shrink(s Schedule) Schedule {
	_, v := Run(s)
	if v == nil {
		return s
	}
	fails := func(s Schedule) bool {
		_, w := Run(s)
		return w != nil && w.Promise == v.Promise
	}
	for size := len(s.Faults); size >= 1; {
		spared := false
		for i := 0; i+size <= len(s.Faults); i++ {
			if less := s.without(i, i+size); fails(less) {
				s, spared = less, true
				break
			}
		}
		if size = min(size, len(s.Faults)); !spared {
			size /= 2
		}
	}
	return s
}
