package sim

// Shrink takes faults out of a schedule that breaks a promise, until none can be
// spared. What is left breaks the same promise.
func Shrink(s Schedule) Schedule {
	return shrinkIn(s, func(s Schedule) *Violation {
		_, v := Run(s)
		return v
	})
}

// shrinkIn is [Shrink] where schedules are run by run.
func shrinkIn(s Schedule, run func(Schedule) *Violation) Schedule {
	v := run(s)
	if v == nil {
		return s
	}
	return shrink(s, func(s Schedule) bool {
		w := run(s)
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
