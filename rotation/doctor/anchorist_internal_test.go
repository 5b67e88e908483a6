package doctor

import (
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/test/rekortest"
)

// anchorist makes anchors of a chain.
type anchorist struct {
	t   *testing.T
	log *rekortest.Log
	key *rekortest.Key
}

// anchor is anchor n of a chain, which covers it up to head.
func (a anchorist) anchor(chain string, n int64, head audit.Head) []byte {
	a.t.Helper()
	return a.encoded(a.signed(chain, n, head))
}

func (a anchorist) signed(chain string, n int64, head audit.Head) audit.Signed {
	a.t.Helper()
	prev := ""
	if n > 1 {
		prev = strings.Repeat("0", 64)
	}
	return a.key.Statement(a.t, audit.NewStatement(chain, n, prev, head, at(int(n))))
}

func (a anchorist) encoded(s audit.Signed) []byte {
	a.t.Helper()
	b, err := audit.Anchor{V: s.Statement.V, Signed: s, Proof: a.log.Submit(a.t, s)}.Encode()
	if err != nil {
		a.t.Fatal(err)
	}
	return b
}
