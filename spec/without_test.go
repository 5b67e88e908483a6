package spec

import (
	"fmt"
	"strings"
	"testing"
)

// edit replaces a part of a module's text, which occurs in it exactly once.
type edit struct{ old, new string }

// without says how each mechanism is taken away from the models.
var without = map[string][]edit{
	// Writers and readers.
	"mark-first":   {{`May(r) == /\ TableOf(r) \in mark`, `May(r) == /\ TRUE`}},
	"insert-fence": {{`InsertOK(r, k, s) == row[r] = NoRow /\ s \in fence[k]`, `InsertOK(r, k, s) == row[r] = NoRow`}},
	"update-epoch": {{`THEN row[r].ep <= e ELSE`, `THEN TRUE ELSE`}},
	"update-fence": {{`THEN row[r].ep <= e ELSE s \in fence[k]`, `THEN row[r].ep <= e ELSE TRUE`}},
	"reread":       {{`IF rd[q].k \in on \/ row[r] = NoRow THEN NotRead`, `IF TRUE THEN NotRead`}},

	// Checkpoints.
	"mac":          {{`IF store[s].mac = NoMAC THEN Absent ELSE store[s]`, `store[s]`}, {`Authentic(s)       == store[s].mac = For(s, store[s].page, store[s].done)`, `Authentic(s)       == TRUE`}},
	"mac-rotation": {{`For(s, page, done) == [n |-> n,`, `For(s, page, done) == [n |-> 1,`}},
	"mac-pass":     {{`For(s, page, done) == [n |-> n, p |-> p,`, `For(s, page, done) == [n |-> n, p |-> "pass",`}},
	"mac-segment":  {{`p |-> p, s |-> s, page |-> page, done |-> done]`, `p |-> p, s |-> "segment", page |-> page, done |-> done]`}},
	"mac-content":  {{`s |-> s, page |-> page, done |-> done]` + "\nAuth", `s |-> s, page |-> 1, done |-> TRUE]` + "\nAuth"}},

	// People.
	"adopt-condition": reads(edit{
		`  /\ Adoptable(r)
  /\ row' = [row EXCEPT ![r].kid = row[r].real]
  /\ UNCHANGED <<keyV, ctlV, workV, wr, rd, backup, cntV>>`,
		`  \/ /\ Adoptable(r) /\ late' = late \cup {<<r, row[r].real>>}
     /\ UNCHANGED <<keyV, ctlV, lease, seen, gone, rw, clean, halt, dataV, cntV>>
  \/ /\ row[r] # NoRow
     /\ \E k \in KEK : <<r, k>> \in late /\ late' = late \ {<<r, k>>} /\ row' = [row EXCEPT ![r].kid = k]
     /\ UNCHANGED <<keyV, ctlV, lease, seen, gone, rw, clean, halt, wr, rd, backup, cntV>>`,
	}),
	"register-idle": {{"NotYet(k)\n  /\\ lock = 0\n", "NotYet(k)\n"}},
	"register-shut": {{
		"![k] = \"sealed\"]\n  /\\ UNCHANGED <<on, tag, owner, doomed, reaper, unfit, ptr, fence, lock, rot,",
		"![k] = \"sealed\"]\n  /\\ fence' = [fence EXCEPT ![k] = Shard]\n  /\\ UNCHANGED <<on, tag, owner, doomed, reaper, unfit, ptr, lock, rot,",
	}},
	"add-settled":    {{`t \notin src /\ Settled`, `t \notin src`}},
	"remove-census":  {{"  /\\ \\A r \\in Row : TableOf(r) = t => row[r] = NoRow\n", ""}},
	"remove-stopped": {{"  /\\ \\A w \\in Writer : wr[w].pc = \"wrapped\" => TableOf(wr[w].r) # t\n", ""}},

	"restore-label": {{`keks == {k, backup.kid} \ {0}`, `keks == {k}`}},

	"missing-refuses": {{"row[r] = NoRow /\\ There(k, s) /\\ s \\in fence[k]", "row[r] = NoRow /\\ (s \\in fence[k] \\/ ~There(k, s))"}},
	"archive-left":    {{"  /\\ Left(k) /\\ There(k, s)\n", "  /\\ There(k, s)\n"}},
	"archive-retired": {{"  /\\ kek[k] = \"retired\" /\\ k \\notin on\n  /\\ s", "  /\\ s"}},
	"archive-sealed":  {{"  /\\ s \\notin fence[k]\n  /\\ none'", "  /\\ none'"}},

	"look-behind": {{"  /\\ back = \"set\" => ~GivesUp       \\* Journal.CheckSetBack\n", ""}},

	// Start, lock and takeover.
	"lock": {
		{`rot[n].ph = ph /\ lock = n`, `rot[n].ph = ph`},
		{`/\ lock = 0 /\ kek[ptr.kek] = "active"`, `/\ kek[ptr.kek] = "active"`},
		{`/\ lock = n /\ rot[n].ph \in PreSw /\ rot[n].mode = "normal"`, `/\ rot[n].ph \in PreSw /\ rot[n].mode = "normal"`},
		{`/\ lock = n /\ rot[n].ph \in PreSw /\ rot[n].mode = "emergency"`, `/\ rot[n].ph \in PreSw /\ rot[n].mode = "emergency"`},
	},
	"at-registry": append(reads(
		edit{"  /\\ m = \"normal\" => mark \\subseteq src\n", ""},
		edit{
			`  /\ rot' = [rot EXCEPT ![n] = [NoRot EXCEPT`,
			`  /\ \E srcs \in {src} \cup late : (m = "normal" => mark \subseteq srcs) /\ rot' = [rot EXCEPT ![n] = [NoRot EXCEPT`,
		},
		edit{`!.olds = Registered, !.srcs = src]]`, `!.olds = Registered, !.srcs = srcs]]`},
	), action("StartRead", `lock = 0 /\ late' = late \cup {src}
  /\ UNCHANGED <<keyV, ctlV, lease, seen, gone, rw, clean, halt, dataV, cntV>>`)...),
	"start-marks": {{"  /\\ m = \"normal\" => mark \\subseteq src\n", ""}},
	"all-olds": {
		{`!.olds = Registered, !.srcs = src]]`, `!.olds = {ptr.kek}, !.srcs = src]]`},
		{`!.olds = Registered, !.srcs = src, !.left = left]]`, `!.olds = {ptr.kek}, !.srcs = src, !.left = left]]`},
	},
	"supersede": {{`![n].ph = ended, `, ``}},
	"left":      {{`, !.left = left]]`, `]]`}},

	// Keys.
	"count":           {{` /\ (rot[n].mode = "normal" => rot[n].cnt)`, ``}},
	"arbiter":         {{`k \in owner /\ tag[k] = [n |-> n, a |-> rot[n].att] /\ kek[k]`, `k \in Made /\ tag[k].n = n /\ kek[k]`}},
	"keep-superseded": {{`rot[n].ph = "rolledback" THEN {}`, `rot[n].ph \in {"rolledback", "superseded"} THEN {}`}},
	"reap-order": {
		{`set |-> {k \in Made : tag[k].n = n}]`, `set |-> Keep(n)] /\ ~MintUnderWay(n)`},
		{`IF MintUnderWay(n) THEN {} ELSE reaper.set \ Keep(n)`, `({k \in Made : tag[k].n = n} \ reaper.set)`},
	},
	"reap-waits":        {{`IF MintUnderWay(n) THEN {} ELSE reaper.set \ Keep(n)`, `(reaper.set \ Keep(n))`}},
	"rehearse":          {{`rot[n].new \in on /\ rot[n].reh = rot[n].new` + "\n  /\\ rot'", `rot[n].new \in on` + "\n  /\\ rot'"}},
	"rehearse-key":      {{`rot[n].new \in on /\ rot[n].reh = rot[n].new` + "\n  /\\ rot'", `rot[n].new \in on /\ rot[n].reh # 0` + "\n  /\\ rot'"}},
	"psf-before-switch": {{`lock = n /\ rot[n].ph \in PreSw /\ rot[n].mode = "normal"`, `lock = n /\ rot[n].ph \notin Final \cup {"none"} /\ rot[n].mode = "normal"`}},
	"emergency-forward": {{`/\ rot[n].ph \in PreSw /\ rot[n].mode = "normal"`, `/\ rot[n].ph \in PreSw`}},

	// Switch, drain and seal.
	"settle": {{"  /\\ KnownToAll(k)      \\* Steps.settleTime: as old as the slowest host of KMS is slow\n", ""}},
	"scan-consistent": {{
		"x.real = rot[n].new)\n\nScanRow", "x.real = rot[n].new)\n  \\/ x.dek % Serials > 0      \\* a row that was inserted meanwhile may not be seen\n\nScanRow",
	}},
	"switch-condition": action("LateSwitch", `\E n \in Rot : /\ Reached(n, "switched") /\ rot[n].new # ptr.kek
                   /\ ptr.ep <= MaxRot + 1 /\ ptr' = [kek |-> rot[n].new, ep |-> ptr.ep + 1]
  /\ UNCHANGED <<keyV, fence, lock, rot, tabV, workV, dataV, cntV>>`),
	"revoke-condition": {{`IF lease[w][k] = seen[w][k] THEN`, `IF TRUE THEN`}},
	"drain":            {{`Drained(n)  == Leases =>`, `Drained(n)  == FALSE =>`}},
	"seal-every-old": {
		{`k \in rot[n].olds /\ s \in fence[k]`, `k = rot[n].old /\ s \in fence[k]`},
		{`k \in rot[n].olds /\ kek[k] = "draining"`, `k = rot[n].old /\ kek[k] = "draining"`},
		{`\A j \in rot[n].olds : kek'[j]`, `\A j \in {rot[n].old} : kek'[j]`},
		{`\A k \in olds : kek[k] = "sealed"`, `kek[rot[n].old] = "sealed"`},
	},
	"seal-after-switch": {{"  /\\ Once(n, \"switched\") /\\ (Drained(n) \\/ rot[n].ph = \"superseded\")\n", ""}},
	"seal-all":          {{"  /\\ fence[k] = {}\n", ""}},

	// Rewrap, the passes and the end.
	"rewrap": {
		{`  /\ Rewrapping(n) /\ r \in Frozen(n)`, `  /\ FALSE /\ r \in Frozen(n)`},
		{"  \\/ x = NoRow\n", "  \\/ x = NoRow \\/ rot[n].ph # \"retired\"\n"},
	},
	"rewrap-after-seal": {
		{`Rewrapping(n) == Once(n, "drained")`, `Rewrapping(n) == Once(n, "switched")`},
		{`rot[n].ph \in {"drained", "rewrapped", "retired"}` + "\n  /\\ ~halt", `rot[n].ph \in {"switched", "drained", "rewrapped", "retired"}` + "\n  /\\ ~halt"},
		{`clean' = IF last THEN {} ELSE clean`, `clean' = clean`},
	},
	"rewrap-no-upsert":         {{"LET b == rw[n][r] IN\n  /\\ row[r] # NoRow\n", "LET b == rw[n][r] IN\n"}},
	"rewrap-condition":         {{"  /\\ row[r].kid = b.from /\\ row[r].real = b.from /\\ row[r].dek = b.dek\n", ""}},
	"rewrap-payload-condition": {{"  /\\ Payload(n) => row[r].body = b.body\n", ""}},
	"rewrap-epoch":             {{`ep |-> rot[n].ep, body |-> row[r].body]]`, `ep |-> row[r].ep, body |-> row[r].body]]`}},
	"fresh-dek":                {{`Payload(n) == rot[n].mode = "emergency"`, `Payload(n) == FALSE`}},
	"deep":                     {{`(Reached(n, "rewrapped") => x.real = rot[n].new)`, `TRUE`}},
	"strict-pass":              {{"  \\/ x = NoRow\n", "  \\/ x = NoRow \\/ x.kid \\notin {0, rot[n].old}\n"}},
	"no-skip":                  {{"  \\/ x = NoRow\n", "  \\/ x = NoRow \\/ x.kid = 0\n"}},
	"fresh-scan":               {{"  /\\ halt' = FALSE\n  /\\ clean' = {}\n", "  /\\ halt' = FALSE\n  /\\ clean' = clean\n"}},
	"rev": append(reads(
		edit{`AllClean(n) == ~halt /\ Frozen(n) \subseteq clean`, `AllClean(n) == ~halt /\ <<n, rot[n].ph>> \in late`},
	), action("Judge", `\E n \in Rot : /\ rot[n].ph \in {"drained", "rewrapped", "retired"} /\ Frozen(n) \subseteq clean
                   /\ late' = {<<n, rot[n].ph>>}
  /\ UNCHANGED <<keyV, ctlV, lease, seen, gone, rw, clean, halt, dataV, cntV>>`)...),
	"confirm":        {{"![n].ph = \"rewrapped\"]\n  /\\ clean' = {}\n", "![n].ph = \"rewrapped\"]\n  /\\ clean' = clean\n"}},
	"retire-last":    {{`At(n, "rewrapped") /\ AllClean(n) /\ ptr.kek \notin olds /\ \A k \in olds : kek[k] = "sealed"`, `rot[n].ph \notin Final \cup {"none", "retired"}`}},
	"retire-marks":   {{"kek[k] = \"sealed\"\n  /\\ mark \\subseteq rot[n].srcs\n", "kek[k] = \"sealed\"\n"}},
	"registry-first": {{`k \in on /\ kek[k] = "retired"`, `k \in on /\ \E n \in Rot : Once(n, "switched") /\ k \in rot[n].olds`}},
	"disable-all":    {{`rot[n].left \cup rot[n].olds : Refuses(k)`, `rot[n].left \cup {rot[n].old} : Refuses(k)`}},

	// The outbox.
	"in-transaction": {
		{`outbox' = Append(outbox, made + 1)`, `outbox' = outbox`},
		{"Next == \\/ Apply\n", `RecordLater(ev) == /\ ev <= made /\ ~Recorded(ev) /\ outbox' = Append(outbox, ev)
                   /\ UNCHANGED <<made, from, marked, bucket, pub, done, restored>>

Next == \/ Apply \/ \E ev \in 1 .. MaxEvent : RecordLater(ev)
`},
	},
	"seq-in-transaction": {
		{`seq |-> i, ev |-> outbox[i]] : i \in marked`, `seq |-> i - marked + (IF bucket = {} THEN 0
         ELSE CHOOSE m \in {b.seq : b \in bucket} : \A b \in bucket : b.seq <= m), ev |-> outbox[i]] : i \in marked`},
		{`[@ EXCEPT !.pc = "halted", !.todo = {r}]`, `Resting`},
	},
	"write-once":          {{`IF Taken(r) /\ r \notin bucket `, `IF FALSE `}},
	"generations":         {{`/\ pub[p].pc = "halted" /\ r`, `/\ FALSE /\ r`}},
	"begin-on-condition":  {{`IF Len(from) = pub[p].gens /\ outbox = pub[p].box`, `IF TRUE`}},
	"begin-on-head":       {{`IF Len(from) = pub[p].gens /\ outbox = pub[p].box`, `IF Len(from) = pub[p].gens`}},
	"put-before-mark":     {{`pub[p].pc = "putting" /\ pub[p].todo = {}`, `pub[p].pc = "putting"`}},
	"publish-before-done": {{"  /\\ \\E i \\in 1 .. marked : outbox[i] = ev\n", ""}},

	// Keyed rows, and the table of their data keys.
	"create-fence": {{`IF rec[me.d] = NoRec /\ me.k \in fence`, `IF rec[me.d] = NoRec`}},
	"seal-records": {{`rot[n].ph = "switched" /\ (1 .. n) \cap (fence \cup efence) = {}`, `rot[n].ph = "switched"`}},
	"record-first": keyedAction("CreateLate", `\E w \in Writer \cup Walker :
     /\ wr[w].pc = "made" /\ wr' = [wr EXCEPT ![w].pc = "ready"]
     /\ UNCHANGED <<ctl, keys, row, work, rd, writes, harm>>`),
	"record-condition": {{"  /\\ rec[d].kek = h[3]\n  /\\ rec[d] # NoRec\n", "  /\\ rec[d] # NoRec\n"}},
	"never-delete": keyedAction("Collect", `\E d \in Dek :
     /\ rec[d] # NoRec /\ \A r \in Row : ~(row[r].f = "key" /\ row[r].d = d)
     /\ rec' = [rec EXCEPT ![d] = NoRec]
     /\ UNCHANGED <<ctl, gen, bkt, row, work, wr, rd, writes, harm>>`),
	"second-pass":    {{`![n].ph = "rewrapped"] /\ clean' = {}`, `![n].ph = "rewrapped"] /\ clean' = clean`}},
	"strict-records": {{`rec[d].kek \in {0, n + 1}`, `rec[d].kek # n`}},
	"inventory":      {{"  /\\ rec[d] # NoRec \\/ Olds(n) \\cap bkt[d] = {} \\/ n + 1 \\in bkt[d]\n", ""}},
	"copy-first": append(keyedAction("CopyLate", `\E d \in Dek :
     /\ rec[d] # NoRec /\ bkt' = [bkt EXCEPT ![d] = @ \cup {rec[d].kek}]
     /\ UNCHANGED <<ctl, rec, gen, row, work, wr, rd, writes, harm>>`),
		edit{`bkt' = [bkt EXCEPT ![wr[w].d] = @ \cup {wr[w].k}]`, `bkt' = bkt`},
		edit{`bkt' = [bkt EXCEPT ![d] = @ \cup {n + 1}]`, `bkt' = bkt`}),
	"putback-fence": {
		{`LET to == IF k \notin fence THEN ptr ELSE k IN`, `LET to == k IN`},
		{`Bad(d) /\ p[2] \in fence`, `Bad(d)`},
	},
	"retire-records-last":       {{`rot[n].ph = "rewrapped" /\ AllClean` + "\n", `rot[n].ph \in {"started", "switched", "sealed", "rewrapped"}` + "\n"}},
	"seal-records-after-switch": {{"  /\\ Reached(n, \"switched\")\n  /\\ k <= n", "  /\\ Reached(n, \"started\")\n  /\\ k <= n"}},
	"bind":                      {{`Unbound(x) == FALSE`, `Unbound(x) == x.o = 1`}},
	"reread-record": {
		{`ELSE /\ harm' = harm` + "\n", `ELSE /\ harm' = harm \cup {"read failed"}` + "\n"},
		{`IF row[r] # NoRow THEN [r |-> r, k |-> KekOf(row[r])] ELSE NotRead`, `NotRead`},
	},
	"scan-rows":  {{`Olds(n) \cap eopen # {} \/ rot[n].mode = "emergency"`, `rot[n].mode = "emergency"`}},
	"emb-on-emb": {{`IF me.f = "emb" THEN x.f = "emb" /\ x.ep <= me.k`, `IF me.f = "emb" THEN x.f = "emb" => x.ep <= me.k`}},
	"back-fence": {{`me.k \in eopen /\ me.k \in efence`, `me.k \in eopen`}},
	"walk":       {{"  /\\ rot[n].mode = \"emergency\" => ~(x.f", "  /\\ FALSE => ~(x.f"}},
	"row-epoch":  {{`RowEpoch(k) == k`, `RowEpoch(k) == 0`}},
	"walk-epoch": {{`x.b = me.was.b /\ x.ep <= me.k`, `x.b = me.was.b`}},
	"keep-born":  {{`born |-> @.born]]`, `born |-> n + 1]]`}},
	"walk-ciphertext": {
		{`V1 == 0`, `V1 == 1`},
		{`IF x.f = me.was.f /\ x.d = me.was.d /\ x.b = me.was.b /\ x.ep <= me.k`, `IF x.f = me.was.f /\ (x.f = "key" => x.d = me.was.d) /\ x.v = me.was.v /\ x.f # "none" /\ x.ep <= me.k`},
	},
	"update-ciphertext": {
		{`V1 == 0`, `V1 == 1`},
		{`Same(x, was) == x.f # "none" /\ x.f = was.f /\ x.d = was.d /\ x.b = was.b`, `Same(x, was) == x.f # "none" /\ x.v = was.v`},
	},

	// Doctor.
	"repair-condition": {{`IF ~AsRead THEN`, `IF FALSE THEN`}},
	"repair-chain": {{ // believes tags alone
		`ptr' = IF l.i = "ptr" THEN h.ptr ELSE ptr`,
		`ptr' \in IF l.i = "ptr" THEN {[kek |-> j, ep |-> h.ptr.ep + 1] : j \in {i \in on : tag[i] # NoTag}} ELSE {ptr}`,
	}},
}

// reads adds the variable late: what a step has read and writes upon at any later time.
func reads(edits ...edit) []edit {
	return append(edits,
		edit{`passV  == <<halt>>`, "VARIABLE late\npassV  == <<halt, late>>"},
		edit{"  /\\ halt = FALSE\n", "  /\\ halt = FALSE /\\ late = {}\n"})
}

// action adds an action that the code has not.
func action(name, body string) []edit {
	return []edit{{"Next == Writing", name + " ==\n  /\\ " + body + "\n\nNext == " + name + " \\/ Writing"}}
}

// keyedAction adds an action that the code has not to keyed.tla.
func keyedAction(name, body string) []edit {
	return []edit{{"Next   == Data \\/", name + " ==\n  " + body + "\n\nNext   == " + name + " \\/ Data \\/"}}
}

// changed is the text of the modules with the variant's mechanisms taken away and its
// own edits made.
func (v variant) changed() (map[string]string, error) {
	files := map[string]string{"rotation": Rotation, "outbox": Outbox, "doctor": Doctor, "lag": Lag, "setback": SetBack, "checkpoint": Checkpoint, "archive": Archive, "keyed": Keyed}
	all := v.edits
	for _, name := range v.off {
		edits, ok := without[name]
		if !ok {
			return nil, fmt.Errorf("%s: no mechanism %q", v.name, name)
		}
		all = append(all[:len(all):len(all)], edits...)
	}
	for _, e := range all {
		var in []string
		for name, text := range files {
			for range strings.Count(text, e.old) {
				in = append(in, name)
			}
		}
		if len(in) != 1 {
			return nil, fmt.Errorf("%s: in %v, not once: %q", v.name, in, e.old)
		}
		files[in[0]] = strings.Replace(files[in[0]], e.old, e.new, 1)
	}
	if v.module == "refines" { // never edited: it has lines of rotation.tla
		files["evidence"], files["refines"] = Evidence, Refines
	}
	return files, nil
}

// TestEdits makes the changes of every variant, and finds a use of every mechanism.
func TestEdits(t *testing.T) {
	used := map[string]bool{}
	for _, v := range variants {
		if _, err := v.changed(); err != nil {
			t.Error(err)
		}
		for _, name := range v.off {
			used[name] = true
		}
	}
	for name := range without {
		if !used[name] {
			t.Errorf("no variant is without %s", name)
		}
	}
}
