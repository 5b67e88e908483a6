package templatetest

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
)

var substituted = regexp.MustCompile(`\$\{([^}]+)\}`)

// TestDashboard: the dashboard is JSON, shows every alarm and the errors of every
// function, and its widgets do not lie on one another.
func TestDashboard(t *testing.T) {
	tpl := load(t)
	text := at[string](t, tpl.Resources, "Dashboard", "Properties", "DashboardBody", "Fn::Sub")
	for _, m := range substituted.FindAllStringSubmatch(text, -1) {
		name, _, _ := strings.Cut(m[1], ".")
		if _, ok := tpl.Resources[name]; !ok && !strings.HasPrefix(name, "AWS::") {
			t.Errorf("the dashboard names %s, which is no resource", m[0])
		}
	}
	var body struct {
		Widgets []struct {
			Type                string
			X, Y, Width, Height int
			Properties          struct{ Alarms []string }
		}
	}
	if err := json.Unmarshal([]byte(substituted.ReplaceAllString(text, "x")), &body); err != nil {
		t.Fatal(err)
	}
	taken := map[[2]int]bool{}
	for _, w := range body.Widgets {
		if w.X+w.Width > 24 {
			t.Errorf("a %s widget ends at column %d of 24", w.Type, w.X+w.Width)
		}
		for x := range w.Width {
			for y := range w.Height {
				if p := [2]int{w.X + x, w.Y + y}; taken[p] {
					t.Fatalf("two widgets lie on %v", p)
				} else {
					taken[p] = true
				}
			}
		}
	}
	for name, r := range tpl.Resources {
		switch at[string](t, r, "Type") {
		case "AWS::CloudWatch::Alarm":
			alarm := at[string](t, r, "Properties", "AlarmName", "Fn::Sub")
			if !strings.Contains(text, ":alarm:"+alarm+`"`) {
				t.Errorf("the dashboard does not show alarm %s", alarm)
			}
		case "AWS::Serverless::Function":
			if !strings.Contains(text, `"${`+name+`}"`) {
				t.Errorf("the dashboard does not show the errors of %s", name)
			}
		}
	}
}
