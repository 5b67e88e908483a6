package audit_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/note"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/test/audittest"
	"github.com/matter-ops/kms-rotation/test/rekortest"
)

// TestParseTrust: a list that is not wholly usable is refused, and the error names
// the entry.
func TestParseTrust(t *testing.T) {
	log, key := rekortest.New(t).Trust(), rekortest.NewKey(t).DER
	other, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	p384 := pkix(t, other.Public(), err)
	list := func(change func(*audit.Trust)) string {
		trust := audit.Trust{Logs: []audit.Log{log, log}, AnchorKeys: []audit.PinnedKey{{Key: key}, {Key: key}}}
		if change != nil {
			change(&trust)
		}
		b, err := json.Marshal(trust)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	good := list(nil)
	day := time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)
	if got, err := audit.ParseTrust([]byte(good)); err != nil || len(got.Logs) != 2 || len(got.AnchorKeys) != 2 || !cmp.Equal(got.Logs[1], log) {
		t.Fatalf("%+v, %v", got, err)
	}
	if strings.Contains(good, "valid_from") || strings.Contains(good, "valid_to") {
		t.Errorf("it states a time that nobody gave: %s", good)
	}
	origin := func(s string) string { return list(func(t *audit.Trust) { t.Logs[1].Origin = s }) }
	for name, c := range map[string]struct{ text, want string }{
		"a field more":      {strings.Replace(good, `{"logs"`, `{"log":1,"logs"`, 1), "trust list: log: unknown field"},
		"two values":        {good + good, "more than one JSON value"},
		"a bracket":         {good + "]", "more than one JSON value"},
		"no URL":            {list(func(t *audit.Trust) { t.Logs[1].URL = "" }), "logs[1].url: is required"},
		"no origin":         {origin(""), `logs[1]: origin ""`},
		"a plus":            {origin("a+b"), `logs[1]: origin "a+b"`},
		"a space":           {origin("a b"), `logs[1]: origin "a b"`},
		"a line":            {origin("a\nb"), `logs[1]: origin "a\nb"`},
		"a tab":             {origin("a\tb"), `logs[1]: origin "a\tb"`},
		"no log key":        {list(func(t *audit.Trust) { t.Logs[1].Key = []byte{} }), "logs[1]: log key: asn1"},
		"a null key":        {list(func(t *audit.Trust) { t.Logs[1].Key = nil }), "logs[1].key: null is not a value"},
		"null":              {"null", "the whole value: null is not a value"},
		"nothing":           {"", "EOF"},
		"an empty object":   {"{}", "logs: at least one is required"},
		"an empty list":     {`{"logs":[]}`, "logs: at least one is required"},
		"null for logs":     {`{"logs":null}`, "trust list: logs: null is not a value"},
		"null for a log":    {`{"logs":[null]}`, "trust list: logs[0]: null is not a value"},
		"a list":            {"[" + good + "]", "cannot unmarshal array"},
		"a log for a list":  {`{"logs":{"url":"u"}}`, "cannot unmarshal object"},
		"half":              {good[:len(good)/2], "unexpected EOF"},
		"a great number":    {`{"logs":[{"url":1e999}]}`, "cannot unmarshal number"},
		"half a name":       {`{"lo`, "unexpected EOF"},
		"open":              {`{"logs":[`, "EOF"},
		"a number":          {strings.Replace(good, `"url":"http://rekor.test"`, `"url":7`, 1), "cannot unmarshal number into Go struct field Log.logs.url"},
		"an object":         {strings.Replace(good, `"url":"http://rekor.test"`, `"url":{"a":1}`, 1), "logs[0].url.a: unknown field"},
		"a field twice":     {strings.Replace(good, `{"logs"`, `{"logs":[],"logs"`, 1), "trust list: logs: the field is there twice"},
		"an origin twice":   {strings.Replace(good, `"origin"`, `"origin":"o","origin"`, 1), "trust list: logs[0].origin: the field is there twice"},
		"another case":      {strings.Replace(good, `"origin"`, `"Origin"`, 1), "trust list: logs[0].Origin: unknown field"},
		"another case, top": {strings.Replace(good, `"anchor_keys"`, `"Anchor_keys"`, 1), "trust list: Anchor_keys: unknown field"},
		"a key's field":     {strings.Replace(good, `"anchor_keys":[{`, `"anchor_keys":[{"url":"u",`, 1), "trust list: anchor_keys[0].url: unknown field"},
		"a log's end":       {list(func(t *audit.Trust) { t.Logs[1].From, t.Logs[1].To = day, day }), "logs[1].valid_to: it is not after valid_from"},
		"a key's end":       {list(func(t *audit.Trust) { t.AnchorKeys[1].From, t.AnchorKeys[1].To = day, day }), "anchor_keys[1].valid_to: it is not after valid_from"},
		"an RSA log key":    {list(func(tr *audit.Trust) { tr.Logs[1].Key = rsaKey(t) }), "logs[1]: log key: *rsa.PublicKey is neither"},
		"no anchor key":     {list(func(t *audit.Trust) { t.AnchorKeys[1].Key = []byte{} }), "anchor_keys[1]: anchor key: asn1"},
		"an Ed25519 anchor": {list(func(t *audit.Trust) { t.AnchorKeys[1].Key = log.Key }), "anchor_keys[1]: anchor key: it is not ECDSA"},
		"a P-384 anchor":    {list(func(t *audit.Trust) { t.AnchorKeys[1].Key = p384 }), "anchor_keys[1]: anchor key: it is not ECDSA on P-256"},
	} {
		got, err := audit.ParseTrust([]byte(c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) || !cmp.Equal(got, audit.Trust{}) {
			t.Errorf("%s: %+v, %v, want %s", name, got, err, c.want)
		}
	}
}

// TestWritableLogs: anchors go to the log that became valid last, and if that takes none to
// the one before.
func TestWritableLogs(t *testing.T) {
	day := func(n int) time.Time { return time.Date(2026, 4, n, 0, 0, 0, 0, time.UTC) }
	old, young, always := audit.Log{URL: "old", From: day(2), To: day(6)}, audit.Log{URL: "young", From: day(4)}, audit.Log{URL: "always"}
	for name, c := range map[string]struct {
		logs []audit.Log
		at   time.Time
		want string
	}{
		"none":               {nil, day(1), ""},
		"before":             {[]audit.Log{old, young}, day(1), ""},
		"from its beginning": {[]audit.Log{old, young}, day(2), "old"},
		"the younger":        {[]audit.Log{old, young}, day(4), "young old"},
		"in any order":       {[]audit.Log{young, old}, day(4), "young old"},
		"until its end":      {[]audit.Log{old}, day(6).Add(-1), "old"},
		"not at its end":     {[]audit.Log{old}, day(6), ""},
		"the other again":    {[]audit.Log{old, young}, day(6), "young"},
		"since ever":         {[]audit.Log{always}, day(1), "always"},
		"since ever, after":  {[]audit.Log{always, old}, day(3), "old always"},
	} {
		var got []string
		for _, l := range (audit.Trust{Logs: c.logs}).Writable(c.at) {
			got = append(got, l.URL)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// TestAging: a list that ends with an old shard of the public log is warned of before the
// shard is frozen, and nothing else is.
func TestAging(t *testing.T) {
	begun := time.Date(2025, 9, 23, 0, 0, 0, 0, time.UTC)
	shard := func(name string, from time.Time) audit.Log { return audit.Log{URL: "https://" + name, From: from} }
	old := shard("log2025-1.rekor.sigstore.dev", begun)
	day := 24 * time.Hour
	for name, c := range map[string]struct {
		logs []audit.Log
		at   time.Time
		want string
	}{
		"young":               {[]audit.Log{old}, begun.Add(329 * day), ""},
		"old":                 {[]audit.Log{old}, begun.Add(330 * day), "log2025-1.rekor.sigstore.dev began 330 days ago"},
		"with its successor":  {[]audit.Log{old, shard("log2026-1.rekor.sigstore.dev", begun.Add(340*day))}, begun.Add(335 * day), ""},
		"an old successor":    {[]audit.Log{shard("log2026-1.rekor.sigstore.dev", begun.Add(day)), old}, begun.Add(700 * day), "log2026-1"},
		"a log of one's own":  {[]audit.Log{shard("rekor.example.com", begun)}, begun.Add(900 * day), ""},
		"a name that is like": {[]audit.Log{shard("evilrekor.sigstore.dev", begun)}, begun.Add(900 * day), ""},
		"no URL":              {[]audit.Log{{URL: "https://[", From: begun}}, begun.Add(900 * day), ""},
		"none":                {nil, begun, ""},
	} {
		got := audit.Trust{Logs: c.logs}.Aging(c.at)
		if !strings.HasPrefix(got, c.want) || (got == "") != (c.want == "") {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// TestTrustInVerification: of the trust list whatever is valid at an anchor's time is
// enough, wherever it stands in the list, and nothing else is.
func TestTrustInVerification(t *testing.T) {
	w := audittest.New(t)
	key, log := w.Policy.Trust.AnchorKeys[0], w.Policy.Trust.Logs[0]
	foreign, named := rekortest.New(t).Trust(), log
	named.Origin = "another.test"
	later, until := key, key
	later.From = w.Policy.Now
	until.To = w.Policy.Now
	late, ended := log, log
	late.From = w.Policy.Now
	ended.To = w.Policy.Now
	for name, c := range map[string]struct {
		keys []audit.PinnedKey
		logs []audit.Log
		kind audit.Kind
	}{
		"the second key":              {keys: []audit.PinnedKey{{Key: rekortest.NewKey(t).DER}, key}},
		"a key that is valid later":   {keys: []audit.PinnedKey{later}, kind: audit.AnchorKeyUnknown},
		"a key whose time has ended":  {keys: []audit.PinnedKey{until}},
		"no key":                      {keys: []audit.PinnedKey{}, kind: audit.AnchorKeyUnknown},
		"the log's old key":           {logs: []audit.Log{foreign, log}},
		"the log under another name":  {logs: []audit.Log{named}, kind: audit.LogUnknown},
		"another log before":          {logs: []audit.Log{named, log}},
		"a log that is valid later":   {logs: []audit.Log{late}, kind: audit.LogUnknown},
		"a log whose time has ended":  {logs: []audit.Log{ended}},
		"a log with another key only": {logs: []audit.Log{foreign}, kind: audit.WrongCheckpoint},
	} {
		t.Run(name, func(t *testing.T) {
			p := w.Policy
			if c.keys != nil {
				p.Trust.AnchorKeys = c.keys
			}
			if c.logs != nil {
				p.Trust.Logs = c.logs
			}
			r := verify(t, w.Bucket, p)
			if c.kind != "" {
				audittest.MustFind(t, r, c.kind, audit.AnchorKey(audittest.Chain, 1))
			} else if r.Result != audit.Green {
				t.Errorf("%s: %v", r, r.Findings)
			}
		})
	}
}

// noteSigner signs notes under a name, with any key.
type noteSigner struct {
	name string
	hash uint32
	sign func(msg []byte) ([]byte, error)
}

// Name implements [note.Signer].
func (s noteSigner) Name() string { return s.name }

// KeyHash implements [note.Signer].
func (s noteSigner) KeyHash() uint32 { return s.hash }

// Sign implements [note.Signer].
func (s noteSigner) Sign(msg []byte) ([]byte, error) { return s.sign(msg) }

// ecdsaLog is a log with an ECDSA key, and what signs for it.
func ecdsaLog(t *testing.T) (audit.Log, noteSigner) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	l := audit.Log{URL: "https://log.test", Origin: "log.test", Key: pkix(t, key.Public(), err)}
	sum := sha256.Sum256(l.Key) // https://c2sp.org/signed-note, type 0x02 as Rekor has it
	return l, noteSigner{"log.test", binary.BigEndian.Uint32(sum[:]), func(msg []byte) ([]byte, error) {
		sum := sha256.Sum256(msg)
		return ecdsa.SignASN1(rand.Reader, key, sum[:])
	}}
}

func sign(t *testing.T, text string, s note.Signer) string {
	t.Helper()
	b, err := note.Sign(&note.Note{Text: text}, s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestOpenCheckpoint: a checkpoint opens if the log has signed it, with a key of
// either kind, and if it is one.
func TestOpenCheckpoint(t *testing.T) {
	l, s := ecdsaLog(t)
	root := strings.Repeat("r", 32)
	body := func(size, root string) string {
		return "log.test\n" + size + "\n" + base64.StdEncoding.EncodeToString([]byte(root)) + "\n"
	}
	for name, text := range map[string]string{"plain": body("7", root), "extended": body("7", root) + "extension\n"} {
		got, err := l.OpenCheckpoint(sign(t, text, s))
		if want := (audit.Checkpoint{Origin: "log.test", Size: 7, Root: []byte(root)}); err != nil || !cmp.Equal(got, want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	forger := s
	forger.sign = func([]byte) ([]byte, error) { return []byte("signed, honestly"), nil }
	unnamed := l
	unnamed.Origin = ""
	for name, c := range map[string]struct {
		log        audit.Log
		text, want string
	}{
		"forged":           {l, sign(t, body("7", root), forger), "the log did not sign"},
		"another origin":   {l, sign(t, "other.test\n7\n"+base64.StdEncoding.EncodeToString([]byte(root))+"\n", s), "it is not one of"},
		"one line":         {l, sign(t, "log.test\n", s), "it is not one of"},
		"no root":          {l, sign(t, "log.test\n7\n", s), "it is not one of"},
		"a negative size":  {l, sign(t, body("-7", root), s), "tree size"},
		"no size":          {l, sign(t, body("seven", root), s), "tree size"},
		"a size too great": {l, sign(t, body("9223372036854775808", root), s), "tree size"},
		"a short root":     {l, sign(t, body("7", root[1:]), s), "root hash"},
		"a long root":      {l, sign(t, body("7", root+"r"), s), "root hash"},
		"a root and more":  {l, sign(t, strings.TrimSuffix(body("7", root), "\n")+"!\n", s), "root hash"},
		"no base64":        {l, sign(t, "log.test\n7\n"+strings.Repeat("r", 43)+"!\n", s), "root hash"},
	} {
		got, err := c.log.OpenCheckpoint(c.text)
		if !errors.Is(err, audit.ErrCheckpoint) || !strings.Contains(err.Error(), c.want) || !cmp.Equal(got, audit.Checkpoint{}) {
			t.Errorf("%s: %+v, %v, want %s", name, got, err, c.want)
		}
	}
	if _, err := unnamed.OpenCheckpoint(sign(t, body("7", root), s)); err == nil || !strings.Contains(err.Error(), "is not a log's name") {
		t.Errorf("a log without a name: %v", err)
	}
}
