package sim

// Shrink takes faults out of a schedule that breaks a promise, until none can be
// spared. What is left breaks the same promise.
func Shrink(s Schedule) Schedule {
	_, v := Run(s)
	if v == nil {
		return s
	}
	return shrink(s, func(s Schedule) bool {
		_, w := Run(s)
		return w != nil && w.Promise == v.Promise
	})
}

// shrink is delta debugging: it takes out many faults at once, then fewer.
func shrink(s Schedule, fails func(Schedule) bool) Schedule {
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
