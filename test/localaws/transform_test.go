package localaws

import "testing"

// TestNoValue: a property that is AWS::NoValue is left out, as CloudFormation leaves it out;
// any other that CloudFormation has not told is an error.
func TestNoValue(t *testing.T) {
	var body template
	properties := body.replace("X", map[string]any{
		"Boundary": map[string]any{"Fn::If": []any{"HasBoundary", map[string]any{"Ref": "Boundary"}, map[string]any{"Ref": "AWS::NoValue"}}},
		"Name":     map[string]any{"Ref": "Name"},
	})
	var got map[string]any
	if err := fill(properties, map[string]string{"LocalAWSValueOfX1": "n"}, &got); err != nil || len(got) != 1 || got["Name"] != "n" {
		t.Errorf("%v, %v", got, err)
	}
	if err := fill(properties, map[string]string{"LocalAWSValueOfX0": "b", "LocalAWSValueOfX1": "n"}, &got); err != nil || got["Boundary"] != "b" {
		t.Errorf("with a boundary: %v, %v", got, err)
	}
	if err := fill(properties, map[string]string{"LocalAWSValueOfX0": "b"}, &got); err == nil {
		t.Error("a name that is missing is no error")
	}
}
