package spec

import "github.com/matter-ops/kms-rotation/test/tlc"

// checkpoints are the variants in which others write the items that a pass is concluded from.
var checkpoints = []variant{
	{name: "reach_checkpoint", module: "checkpoint", set: set("MaxForged", "0"), also: []string{"NeverTwo"}, want: "NeverTwo", says: "two passes of a rotation and one of the next can be concluded"},
	{name: "ok_checkpoint", module: "checkpoint", want: tlc.Holds, says: "somebody else writes or deletes a checkpoint: no pass is concluded of which a page was not read"},
	{name: "ok_checkpoint_restarts", module: "checkpoint", set: set("MaxRot", "1", "MaxForged", "0", "Restarts", "TRUE"), want: tlc.Holds, says: "a pass that begins from the start"},
	{name: "cx_checkpoint_forged", module: "checkpoint", off: []string{"mac"}, want: "SeenWhole", says: "checkpoints without a MAC: a person who can write the table finishes a pass"},
	{name: "cx_checkpoint_segment", module: "checkpoint", off: []string{"mac-segment"}, want: "SeenWhole", says: "a MAC that does not cover the segment: one that is done is copied to another"},
	{name: "cx_checkpoint_pass", module: "checkpoint", off: []string{"mac-pass"}, want: "SeenWhole", says: "or the pass"},
	{name: "cx_checkpoint_rotation", module: "checkpoint", off: []string{"mac-rotation"}, want: "SeenWhole", says: "or the rotation"},
	{name: "cx_checkpoint_content", module: "checkpoint", off: []string{"mac-content"}, want: "SeenWhole", says: "or how far the segment is"},
	{name: "cx_checkpoint_replayed", module: "checkpoint", set: set("MaxRot", "1", "Restarts", "TRUE"), want: "SeenWhole", says: "a true checkpoint of the same pass from before it was restarted is put back: out of reach of a MAC"},
}
