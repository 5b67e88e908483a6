package console_test

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/kek"
)

// terminal returns a pseudo terminal and what is drawn on it up to the end of a
// line.
func terminal(t *testing.T) (tty *os.File, drawn func() string) {
	t.Helper()
	control, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = control.Close() })
	n, err := unix.IoctlGetInt(int(control.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(control.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tty.Close() })
	return tty, func() string {
		var text []byte
		for !bytes.HasSuffix(text, []byte("\n")) {
			b := make([]byte, 4096)
			n, err := control.Read(b)
			if err != nil {
				t.Fatalf("after %q: %v", text, err)
			}
			text = append(text, b[:n]...)
		}
		return string(text)
	}
}

// TestTerminal: a terminal gets colours and one line that is drawn again; NO_COLOR,
// a dumb terminal, a file and the null device do not.
func TestTerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	tty, drawn := terminal(t)
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = null.Close() })
	if !console.IsTerminal(tty) || console.IsTerminal(null) || console.IsTerminal(&bytes.Buffer{}) {
		t.Errorf("terminal %t, null device %t", console.IsTerminal(tty), console.IsTerminal(null))
	}
	if got := console.PaintText(tty, console.Green, "ok"); got != "\x1b[32mok\x1b[0m" {
		t.Errorf("on a terminal: %q", got)
	}
	if got := console.PaintText(null, console.Green, "ok"); got != "ok" {
		t.Errorf("elsewhere: %q", got)
	}
	line := console.NewStatusLine(tty)
	line.Show("3 in flight", "  1 s of 30 min")
	line.Show("0 in flight", "  2 s of 30 min")
	line.End()
	if got := drawn(); got != "\r\x1b[K3 in flight  1 s of 30 min\r\x1b[K0 in flight  2 s of 30 min\r\n" {
		t.Errorf("drawn %q", got)
	}
	line.ShowItems("", 7)
	line.ShowItems("orders", 8)
	line.End()
	if got := drawn(); got != "\r\x1b[K7 items read\r\x1b[Korders: 8 items read\r\n" {
		t.Errorf("drawn %q", got)
	}
	var file bytes.Buffer
	if console.NewStatusLine(&file).ShowItems("", 7); file.Len() > 0 {
		t.Errorf("elsewhere: %q", &file)
	}
	t.Setenv("NO_COLOR", "1")
	if got := console.PaintText(tty, console.Green, "ok"); got != "ok" {
		t.Errorf("with NO_COLOR: %q", got)
	}
	t.Setenv("TERM", "dumb")
	if console.IsTerminal(tty) {
		t.Error("a dumb terminal was drawn on")
	}
}

// TestLiveView: drain counter, rows per second and the time left, drawn again on a
// terminal; elsewhere a line per state, and numbers alone not too often.
func TestLiveView(t *testing.T) {
	looks := []console.Progress{
		{State: "Mint", Phase: kek.Started, Elapsed: time.Second},
		{State: "DrainWait", Phase: kek.Switched, Leases: 2, Refs: 5, Elapsed: 2 * time.Second},
		{State: "DrainWait", Phase: kek.Switched, Leases: 1, Refs: 1, Elapsed: 3 * time.Second},
		{State: "RewrapSegment", Phase: kek.Drained, Scanned: 100, Rewrapped: 100, Elapsed: 4 * time.Second},
		{State: "RewrapSegment", Phase: kek.Drained, Scanned: 300, Rewrapped: 300, Elapsed: 6 * time.Second},
		{State: "RewrapSegment", Phase: kek.Drained, Scanned: 1500, Rewrapped: 1500, Elapsed: 18 * time.Second},
	}
	for _, live := range []bool{false, true} {
		var out bytes.Buffer
		v := &console.LiveView{Out: &out, Live: live, Rows: 7500, Quiet: 10 * time.Second}
		for _, p := range looks {
			v.Show(p)
		}
		v.End()
		text := out.String()
		for _, want := range []string{"5 in flight, 2 leases", "100 of 7500 rows", "1500 of 7500 rows  100 rows/s  ETA 1 min 0 s"} {
			if !strings.Contains(text, want) {
				t.Errorf("live %t: %q is not in\n%s", live, want, text)
			}
		}
		if got := strings.Contains(text, "300 of 7500 rows"); got != live {
			t.Errorf("live %t: the numbers of 2 s later are shown: %t", live, got)
		}
		if got := strings.Count(text, "\r\x1b[K"); live != (got == len(looks)) {
			t.Errorf("live %t: drawn again %d times", live, got)
		}
	}
}
