package report

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const browserTimeout = 2 * time.Minute

// browser is a headless Chromium that is driven over its DevTools pipe.
type browser struct {
	t       *testing.T
	cmd     *exec.Cmd
	in      *os.File
	out     *bufio.Reader
	session string
	id      int
	faults  []string // console errors, exceptions, blocked and failed requests
	loaded  []string // every URL that the page asked for
}

// chromium is the path of the browser; "" if it is not installed, which is an error
// where MATTER_REQUIRE_CHROMIUM=1.
func chromium(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			return p
		}
	}
	if os.Getenv("MATTER_REQUIRE_CHROMIUM") == "1" {
		t.Fatal("chromium is not installed: apt-get install -y chromium")
	}
	return ""
}

// openBrowser starts Chromium with a profile of its own. The test is skipped where
// it is not installed.
func openBrowser(t *testing.T) *browser {
	t.Helper()
	path := chromium(t)
	if path == "" {
		t.Skip("chromium is not installed")
	}
	theirIn, in, err := os.Pipe()
	must(t, err)
	out, theirOut, err := os.Pipe()
	must(t, err)
	profile, err := os.MkdirTemp("", "matter-chromium-*") //nolint:usetesting // helpers of Chromium outlive it, which t.TempDir takes for a failure
	must(t, err)
	b := &browser{t: t, in: in, out: bufio.NewReaderSize(out, 1<<20)}
	b.cmd = exec.CommandContext(t.Context(), path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
		"--user-data-dir="+profile, "--remote-debugging-pipe", "about:blank")
	b.cmd.ExtraFiles = []*os.File{theirIn, theirOut} // 3 and 4
	must(t, b.cmd.Start())
	timer := time.AfterFunc(browserTimeout, func() { _ = b.cmd.Process.Kill() })
	t.Cleanup(func() {
		timer.Stop()
		b.session = ""
		_, _ = b.try("Browser.close", nil)
		_ = b.cmd.Wait()
		_, _ = in.Close(), out.Close()
		for range 100 { // its helpers write for a moment longer
			if os.RemoveAll(profile) == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	must(t, errors.Join(theirIn.Close(), theirOut.Close()))
	return b
}

type message struct {
	ID     int             `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	Result json.RawMessage `json:"result"`
	Error  *struct {
		Message string `json:"message"`
	} `json:"error"`
}

// try sends one command and waits for its answer; events on the way are kept.
func (b *browser) try(method string, params any) (json.RawMessage, error) {
	b.id++
	cmd := map[string]any{"id": b.id, "method": method}
	if params != nil {
		cmd["params"] = params
	}
	if b.session != "" {
		cmd["sessionId"] = b.session
	}
	text, err := json.Marshal(cmd)
	if err != nil {
		return nil, err
	}
	if _, err := b.in.Write(append(text, 0)); err != nil {
		return nil, err
	}
	for {
		m, err := b.read()
		if err != nil {
			return nil, err
		}
		if m.ID == b.id {
			if m.Error != nil {
				return nil, fmt.Errorf("%s: %s", method, m.Error.Message)
			}
			return m.Result, nil
		}
	}
}

func (b *browser) read() (message, error) {
	text, err := b.out.ReadBytes(0)
	if err != nil {
		return message{}, fmt.Errorf("chromium: %w", err)
	}
	var m message
	if err := json.Unmarshal(text[:len(text)-1], &m); err != nil {
		return m, err
	}
	switch m.Method {
	case "Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed", "Audits.issueAdded":
		b.faults = append(b.faults, m.Method+" "+string(m.Params))
	case "Runtime.consoleAPICalled":
		b.faults = append(b.faults, "console "+string(m.Params))
	case "Network.requestWillBeSent":
		var p struct{ Request struct{ URL string } }
		if err := json.Unmarshal(m.Params, &p); err != nil {
			return m, err
		}
		b.loaded = append(b.loaded, p.Request.URL)
	}
	return m, nil
}

// call sends one command that must succeed and decodes its answer.
func call[T any](b *browser, method string, params any) T {
	b.t.Helper()
	var out T
	text, err := b.try(method, params)
	must(b.t, err)
	must(b.t, json.Unmarshal(text, &out))
	return out
}

type object = map[string]any

// show opens a file in a fresh tab of a size and waits until it is loaded.
func (b *browser) show(file string, width, height int, mobile, dark bool) {
	b.t.Helper()
	b.session, b.faults, b.loaded = "", nil, nil
	target := call[struct{ TargetID string }](b, "Target.createTarget", object{"url": "about:blank"})
	attached := call[struct{ SessionID string }](b, "Target.attachToTarget", object{"targetId": target.TargetID, "flatten": true})
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log", "Network", "Audits"} {
		call[object](b, domain+".enable", nil)
	}
	scale := 1
	if mobile {
		scale = 2
	}
	call[object](b, "Emulation.setDeviceMetricsOverride", object{"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile})
	scheme := "light"
	if dark {
		scheme = "dark"
	}
	call[object](b, "Emulation.setEmulatedMedia", object{"features": []object{{"name": "prefers-color-scheme", "value": scheme}}})
	nav := call[struct{ ErrorText string }](b, "Page.navigate", object{"url": "file://" + file})
	if nav.ErrorText != "" {
		b.t.Fatal(nav.ErrorText)
	}
	for b.eval(`document.readyState`) != "complete" {
		time.Sleep(20 * time.Millisecond)
	}
	b.eval(`new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(""))))`)
}

// eval evaluates an expression to its text.
func (b *browser) eval(expression string) string {
	b.t.Helper()
	out := call[struct {
		Result           struct{ Value any }
		ExceptionDetails json.RawMessage
	}](b, "Runtime.evaluate", object{"expression": expression, "returnByValue": true, "awaitPromise": true})
	if out.ExceptionDetails != nil {
		b.t.Fatalf("%s: %s", expression, out.ExceptionDetails)
	}
	return fmt.Sprint(out.Result.Value)
}

// keep takes a picture of what the screen shows, or a PDF, which must be one. Where
// MATTER_SCREENSHOTS names a directory it is kept there for a person to look at.
func (b *browser) keep(name, method string, params object, magic string) {
	b.t.Helper()
	shot := call[struct{ Data string }](b, method, params)
	picture, err := base64.StdEncoding.DecodeString(shot.Data)
	must(b.t, err)
	if !strings.HasPrefix(string(picture), magic) || len(picture) < 10_000 {
		b.t.Errorf("%s: %d bytes are not a picture of a report", name, len(picture))
	}
	if dir := os.Getenv("MATTER_SCREENSHOTS"); dir != "" {
		must(b.t, os.WriteFile(filepath.Join(dir, name), picture, 0o600))
	}
}

// scroll keeps the rest of the page, a screen at a time.
func (b *browser) scroll(name string, height int) {
	b.t.Helper()
	var tall int
	_, err := fmt.Sscan(b.eval(`document.documentElement.scrollHeight`), &tall)
	must(b.t, err)
	for n := 1; n*height < tall; n++ {
		b.eval(fmt.Sprintf(`scrollTo(0, %d)`, n*height))
		b.keep(fmt.Sprintf("%s-%02d.png", name, n), "Page.captureScreenshot", object{"format": "png"}, "\x89PNG")
	}
	b.eval(`scrollTo(0, 0)`)
}

// wide lists the elements that stick out of the viewport. What is hidden on purpose
// or clipped by its own box does not.
const wide = `[...document.querySelectorAll("body *")].filter(e => {
  const r = e.getBoundingClientRect();
  return r.width > 0 && (r.right > document.documentElement.clientWidth + 1 || r.left < -1) && !e.closest("svg");
}).map(e => e.tagName + "." + e.className + " " + (e.textContent || "").slice(0, 40)).join("\n")`

// pale lists the texts whose contrast is below what WCAG 2 AA asks for, as rendered.
const pale = `(() => {
  const parse = c => { const m = c.match(/[\d.]+/g).map(Number); return m.length > 3 && m[3] === 0 ? null : m; };
  const lum = c => c.slice(0, 3).map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c) return c; } return [255, 255, 255]; };
  const out = new Set();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n; n = walk.nextNode();) {
    const e = n.parentElement;
    if (!n.data.trim() || !e.getClientRects().length) continue;
    const [a, b] = [lum(parse(getComputedStyle(e).color)), lum(behind(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) out.add(e.tagName + "." + e.className + " " + n.data.trim().slice(0, 30));
  }
  return [...out].join("\n");
})()`

// unnamed lists what assistive technology could not tell: headings that skip a
// level, sections and pictures without a name, tables without headers.
const unnamed = `(() => {
  const out = [];
  let level = 0;
  for (const h of document.querySelectorAll("h1,h2,h3,h4")) {
    const n = +h.tagName[1];
    if (n > level + 1) out.push("heading " + h.textContent);
    level = n;
  }
  if (document.querySelectorAll("h1").length !== 1 || !document.documentElement.lang || !document.title) out.push("page");
  for (const s of document.querySelectorAll("section")) if (!document.getElementById(s.getAttribute("aria-labelledby"))?.textContent) out.push("section");
  for (const s of document.querySelectorAll("svg")) if (!s.getAttribute("aria-label")) out.push("svg");
  for (const t of document.querySelectorAll("table")) if (!t.querySelector("th[scope=col]")) out.push("table");
  const ids = [...document.querySelectorAll("[id]")].map(e => e.id);
  if (new Set(ids).size !== ids.length) out.push("ids " + ids);
  return out.join("\n");
})()`

// TestChromium looks at every fixture in a real browser: on a phone, on a desktop
// and in the dark nothing sticks out, nothing is pale, nothing fails and nothing is
// loaded; with every detail open too.
func TestChromium(t *testing.T) {
	b := openBrowser(t)
	for name, fixture := range fixtures {
		file := filepath.Join(t.TempDir(), name+".html")
		f, err := os.Create(file)
		must(t, err)
		must(t, errors.Join(fixture(t).collect(spring).WriteHTML(f), f.Close()))
		lookAt(t, b, name, file, spring)
	}
}

// lookAt looks at the report of a rotation on every screen.
func lookAt(t *testing.T, b *browser, name, file, id string) {
	t.Helper()
	for _, screen := range []struct {
		name          string
		width, height int
		mobile, dark  bool
	}{{"phone", 390, 844, true, false}, {"narrow", 320, 640, true, true}, {"desktop", 1280, 1400, false, false}, {"dark", 1024, 768, false, true}} {
		about := name + "-" + screen.name
		b.show(file, screen.width, screen.height, screen.mobile, screen.dark)
		if h := b.eval(`document.querySelector("h1").textContent`); h != id {
			t.Errorf("%s: it is the page of %q", about, h)
		}
		b.keep(about+".png", "Page.captureScreenshot", object{"format": "png"}, "\x89PNG")
		if os.Getenv("MATTER_SCREENSHOTS") != "" && !screen.dark {
			b.scroll(about, screen.height)
		}
		b.eval(`document.querySelectorAll("details").forEach(d => d.open = true)`)
		if b.eval(`document.documentElement.scrollWidth > document.documentElement.clientWidth`) != "false" {
			t.Errorf("%s: the page scrolls sideways", about)
		}
		for what, script := range map[string]string{"sticks out": wide, "is pale": pale, "has no name": unnamed} {
			if got := b.eval(script); got != "" {
				t.Errorf("%s: this %s:\n%s", about, what, got)
			}
		}
		if len(b.faults) > 0 {
			t.Errorf("%s: %s", about, strings.Join(b.faults, "\n"))
		}
		if !slices.ContainsFunc(b.loaded, func(u string) bool { return u == "file://"+file }) {
			t.Errorf("%s: the page was not seen loading: %q", about, b.loaded)
		}
		for _, u := range b.loaded {
			if u != "file://"+file && u != "data:," {
				t.Errorf("%s: the page loads %s", about, u)
			}
		}
	}
	b.keep(name+".pdf", "Page.printToPDF", object{"printBackground": false, "preferCSSPageSize": true}, "%PDF")
}

// TestBrowserFindsFaults: the test above can fail.
func TestBrowserFindsFaults(t *testing.T) {
	b := openBrowser(t)
	file := filepath.Join(t.TempDir(), "bad.html")
	must(t, os.WriteFile(file, []byte(`<!doctype html><title>bad</title><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<h2 style="color:#aaa;background:#fff">pale</h2><div style="width:700px">wide</div>
<img src="http://127.0.0.1:1/x.png"><script>console.error("said"); null.x</script>`), 0o600))
	b.show(file, 390, 844, true, false)
	for what, got := range map[string]string{"wide": b.eval(wide), "pale": b.eval(pale), "unnamed": b.eval(unnamed)} {
		if got == "" {
			t.Errorf("%s was not found", what)
		}
	}
	faults := strings.Join(b.faults, "\n")
	for _, want := range []string{"Content Security Policy", "said", "exceptionThrown"} {
		if !strings.Contains(faults, want) {
			t.Errorf("%q was not found in:\n%s", want, faults)
		}
	}
}
