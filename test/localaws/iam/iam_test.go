package iam_test

import (
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/test/localaws/iam"
)

func parse(t *testing.T, statements string) []iam.Policy {
	t.Helper()
	p, err := iam.Parse("p", []byte(`{"Version":"2012-10-17","Statement":`+statements+`}`))
	if err != nil {
		t.Fatal(err)
	}
	return []iam.Policy{p}
}

func TestDecide(t *testing.T) {
	policies := parse(t, `[
		{"Sid":"A","Effect":"Allow","Action":["s3:Get*","s3:PutObject"],"Resource":"arn:aws:s3:::b/v1/*"},
		{"Sid":"D","Effect":"Deny","Action":"s3:*","NotResource":"arn:aws:s3:::b/*"},
		{"Sid":"N","Effect":"Deny","NotAction":["s3:*","kms:Decrypt"],"Resource":"*"},
		{"Sid":"K","Effect":"Allow","Action":"kms:*","Resource":"arn:aws:kms:*:key/?"}]`)
	for _, c := range []struct {
		action, resource string
		want             iam.Decision
		by               string
	}{
		{"s3:GetObject", "arn:aws:s3:::b/v1/x", iam.Allowed, "p/A"},
		{"S3:getobject", "arn:aws:s3:::b/v1/x", iam.Allowed, "p/A"},
		{"s3:DeleteObject", "arn:aws:s3:::b/v1/x", iam.Silent, ""},
		{"s3:GetObject", "arn:aws:s3:::b/v2/x", iam.Silent, ""},
		{"s3:GetObject", "arn:aws:s3:::c/v1/x", iam.Denied, "p/D"},
		{"kms:Decrypt", "arn:aws:kms:eu:1:key/k", iam.Allowed, "p/K"},
		{"kms:Decrypt", "arn:aws:kms:eu:1:key/kk", iam.Silent, ""},
		{"kms:Encrypt", "arn:aws:kms:eu:1:key/k", iam.Denied, "p/N"},
	} {
		if got, by := iam.Decide(policies, iam.Access{Action: c.action, Resource: c.resource}); got != c.want || by != c.by {
			t.Errorf("%s on %s: %v by %q, want %v by %q", c.action, c.resource, got, by, c.want, c.by)
		}
	}
}

func TestConditions(t *testing.T) {
	const leading = "dynamodb:leadingkeys"
	for _, c := range []struct {
		condition string
		context   map[string][]string
		want      bool
	}{
		{`{"StringEquals":{"aws:ResourceTag/a:b":"x"}}`, map[string][]string{"aws:resourcetag/a:b": {"x"}}, true},
		{`{"StringEquals":{"aws:ResourceTag/a:b":["y","x"]}}`, map[string][]string{"aws:resourcetag/a:b": {"x"}}, true},
		{`{"StringEquals":{"aws:ResourceTag/a:b":"x"}}`, map[string][]string{"aws:resourcetag/a:b": {"X"}}, false},
		{`{"StringEquals":{"aws:ResourceTag/a:b":"x"}}`, nil, false},
		{`{"StringEqualsIfExists":{"aws:ResourceTag/a:b":"x"}}`, nil, true},
		{`{"StringNotEquals":{"s3:object-lock-mode":"COMPLIANCE"}}`, nil, true},
		{`{"StringNotEquals":{"s3:object-lock-mode":["COMPLIANCE","X"]}}`, map[string][]string{"s3:object-lock-mode": {"COMPLIANCE"}}, false},
		{`{"StringNotEquals":{"s3:object-lock-mode":["COMPLIANCE","X"]}}`, map[string][]string{"s3:object-lock-mode": {"GOVERNANCE"}}, true},
		{`{"StringLike":{"s3:prefix":"v1/*"}}`, map[string][]string{"s3:prefix": {"v1/a/b"}}, true},
		{`{"StringLike":{"s3:prefix":"v1/*"}}`, map[string][]string{"s3:prefix": {"v2/"}}, false},
		{`{"ForAllValues:StringLike":{"dynamodb:LeadingKeys":["KEK#*","LOCK"]}}`, map[string][]string{leading: {"KEK#1", "LOCK"}}, true},
		{`{"ForAllValues:StringLike":{"dynamodb:LeadingKeys":["KEK#*","LOCK"]}}`, map[string][]string{leading: {"KEK#1", "POINTER"}}, false},
		{`{"ForAllValues:StringLike":{"dynamodb:LeadingKeys":["KEK#*"]}}`, nil, true},
		{`{"ForAnyValue:StringLike":{"dynamodb:LeadingKeys":["KEK#*"]}}`, map[string][]string{leading: {"X", "KEK#1"}}, true},
		{`{"ForAnyValue:StringLike":{"dynamodb:LeadingKeys":["KEK#*"]}}`, nil, false},
		{`{"Null":{"s3:if-none-match":"true"}}`, nil, true},
		{`{"Null":{"s3:if-none-match":"true"}}`, map[string][]string{"s3:if-none-match": {"*"}}, false},
		{`{"Null":{"s3:if-none-match":"false"}}`, map[string][]string{"s3:if-none-match": {"*"}}, true},
		{`{"Bool":{"aws:SecureTransport":"false"}}`, map[string][]string{"aws:securetransport": {"true"}}, false},
		{`{"Bool":{"aws:SecureTransport":false}}`, map[string][]string{"aws:securetransport": {"false"}}, true},
		{`{"NumericLessThan":{"s3:object-lock-remaining-retention-days":365}}`, map[string][]string{"s3:object-lock-remaining-retention-days": {"364"}}, true},
		{`{"NumericLessThan":{"s3:object-lock-remaining-retention-days":"365"}}`, map[string][]string{"s3:object-lock-remaining-retention-days": {"365"}}, false},
		{`{"NumericLessThan":{"s3:object-lock-remaining-retention-days":"365"}}`, nil, false},
		{`{"StringEquals":{"kms:KeySpec":"a","kms:KeyUsage":"b"}}`, map[string][]string{"kms:keyspec": {"a"}}, false},
	} {
		p := parse(t, `{"Effect":"Allow","Action":"*","Resource":"*","Condition":`+c.condition+`}`)
		d, _ := iam.Decide(p, iam.Access{Action: "x:Y", Resource: "*", Context: c.context})
		if (d == iam.Allowed) != c.want {
			t.Errorf("%s with %v: %t, want %t", c.condition, c.context, !c.want, c.want)
		}
	}
}

// TestRefuses: a policy that is half understood proves nothing.
func TestRefuses(t *testing.T) {
	for statement, says := range map[string]string{
		`{"Effect":"Allow","Action":"*","Resource":"*","Conditions":{}}`:                                         "Conditions",
		`[{"Effect":"Allow","Action":"*","Resource":"*","Conditions":{}}]`:                                       "Conditions",
		`{"Effect":"Perhaps","Action":"*","Resource":"*"}`:                                                       "effect",
		`{"Effect":"Allow","Resource":"*"}`:                                                                      "Action",
		`{"Effect":"Allow","Action":"*"}`:                                                                        "Resource",
		`{"Effect":"Allow","Action":"*","Resource":"arn:${aws:username}"}`:                                       "variables",
		`{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"StringEquals":{"kms:ViaService":"x"}}}`:     "kms:ViaService",
		`{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"IpAddress":{"s3:prefix":"x"}}}`:             "IpAddress",
		`{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"StringEquals":{"s3:prefix":"${aws:x}"}}}`:   "variables",
		`{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"ForNoValue:StringLike":{"s3:prefix":"x"}}}`: "ForNoValue",
		`{"Effect":"Deny","NotPrincipal":"*","Action":"*","Resource":"*"}`:                                       "NotPrincipal",
	} {
		_, err := iam.Parse("p", []byte(`{"Statement":`+statement+`}`))
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", statement, err)
		}
	}
}

func TestDenialsOnly(t *testing.T) {
	p := parse(t, `[{"Sid":"A","Effect":"Allow","Principal":{"Service":"x"},"Action":"*","Resource":"*"},
		{"Sid":"D","Effect":"Deny","Principal":"*","Action":"*","Resource":"*"}]`)[0]
	d, err := iam.DenialsOnly(p)
	if err != nil || len(d.Statements) != 1 || d.Statements[0].SID != "D" {
		t.Errorf("%+v, %v", d, err)
	}
	some := parse(t, `{"Effect":"Deny","Principal":{"AWS":"1"},"Action":"*","Resource":"*"}`)[0]
	if _, err := iam.DenialsOnly(some); err == nil {
		t.Error("a denial to one principal is not refused")
	}
}

// TestOfAccount: what a key's policy says to an account is what IAM policies can grant.
func TestOfAccount(t *testing.T) {
	const decrypt = `"Action":"kms:Decrypt","Resource":"*"}`
	for principal, want := range map[string]iam.Decision{
		`"*"`:                    iam.Allowed,
		`{"AWS":"*"}`:            iam.Allowed,
		`{"AWS":"123456789012"}`: iam.Allowed,
		`{"AWS":"arn:aws-cn:iam::123456789012:root"}`:    iam.Allowed,
		`{"AWS":["x","arn:aws:iam::123456789012:root"]}`: iam.Allowed,
		`{"AWS":"arn:aws:iam::210987654321:root"}`:       iam.Silent,
		`{"AWS":"arn:aws:iam::123456789012:role/r"}`:     iam.Silent,
		`{"Service":"s3.amazonaws.com"}`:                 iam.Silent,
	} {
		p, err := iam.OfAccount(parse(t, `[{"Effect":"Allow","Principal":`+principal+`,`+decrypt+`]`)[0], "123456789012")
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := iam.Decide([]iam.Policy{p}, iam.Access{Action: "kms:Decrypt", Resource: "k"}); got != want {
			t.Errorf("%s: %v, want %v", principal, got, want)
		}
	}
	some := parse(t, `[{"Effect":"Deny","Principal":{"AWS":"arn:aws:iam::123456789012:role/r"},`+decrypt+`]`)[0]
	if _, err := iam.OfAccount(some, "123456789012"); err == nil {
		t.Error("a denial of one role is taken for none")
	}
}
