package iam

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// condition is one operator on one key.
type condition struct {
	key      string // lower case
	set      string // ForAllValues, ForAnyValue or ""
	ifExists bool
	null     bool
	operator operator
	values   []string
}

// operator compares a value of the request with the policy's.
type operator struct {
	negated bool // it holds if no value of the policy matches
	match   func(policy, request string) bool
}

// operators are the condition operators, without set prefix and IfExists.
var operators = map[string]operator{
	"StringEquals":              {match: func(p, r string) bool { return p == r }},
	"StringNotEquals":           {negated: true, match: func(p, r string) bool { return p == r }},
	"StringEqualsIgnoreCase":    {match: strings.EqualFold},
	"StringNotEqualsIgnoreCase": {negated: true, match: strings.EqualFold},
	"StringLike":                {match: glob},
	"StringNotLike":             {negated: true, match: glob},
	"ArnEquals":                 {match: glob},
	"ArnLike":                   {match: glob},
	"ArnNotEquals":              {negated: true, match: glob},
	"ArnNotLike":                {negated: true, match: glob},
	"Bool":                      {match: strings.EqualFold},
	"NumericEquals":             {match: number(func(order int) bool { return order == 0 })},
	"NumericNotEquals":          {negated: true, match: number(func(order int) bool { return order == 0 })},
	"NumericLessThan":           {match: number(func(order int) bool { return order < 0 })},
	"NumericLessThanEquals":     {match: number(func(order int) bool { return order <= 0 })},
	"NumericGreaterThan":        {match: number(func(order int) bool { return order > 0 })},
	"NumericGreaterThanEquals":  {match: number(func(order int) bool { return order >= 0 })},
}

// number compares numerically; what is no number never matches.
func number(holds func(order int) bool) func(policy, request string) bool {
	return func(policy, request string) bool {
		p, err := strconv.ParseFloat(policy, 64)
		if err != nil {
			return false
		}
		r, err := strconv.ParseFloat(request, 64)
		return err == nil && holds(cmp.Compare(r, p))
	}
}

// keys are the condition keys that package access fills; those with a slash or
// colon at the end are prefixes.
var keys = []string{
	"aws:securetransport", "aws:requesttag/", "aws:resourcetag/", "aws:tagkeys", "aws:principalaccount", "aws:requestedregion", "aws:multifactorauthpresent",
	"dynamodb:leadingkeys", "dynamodb:attributes", "events:source", "events:detail-type", "iam:awsservicename",
	"kms:keyspec", "kms:keyusage", "kms:resourcealiases", "kms:encryptioncontext:", "kms:encryptioncontextkeys", "kms:signingalgorithm", "kms:messagetype", "kms:macalgorithm",
	"s3:prefix", "s3:delimiter", "s3:if-match", "s3:if-none-match", "s3:versionid",
	"s3:object-lock-mode", "s3:object-lock-remaining-retention-days", "s3:object-lock-retain-until-date",
	"s3:x-amz-server-side-encryption", "s3:x-amz-server-side-encryption-aws-kms-key-id",
}

func known(key string) bool {
	return slices.ContainsFunc(keys, func(k string) bool {
		if last := k[len(k)-1]; last == '/' || last == ':' {
			return strings.HasPrefix(key, k)
		}
		return key == k
	})
}

func parseCondition(name, key string, values []string) (condition, error) {
	c := condition{key: strings.ToLower(key), values: values}
	if !known(c.key) {
		return c, fmt.Errorf("condition key %s is not supported here", key)
	}
	if slices.ContainsFunc(values, func(v string) bool { return strings.Contains(v, "${") }) {
		return c, fmt.Errorf("condition on %s: policy variables are not supported here", key)
	}
	rest := name
	if set, after, ok := strings.Cut(name, ":"); ok {
		if set != "ForAllValues" && set != "ForAnyValue" {
			return c, fmt.Errorf("condition operator %s is not supported here", name)
		}
		c.set, rest = set, after
	}
	if rest == "Null" {
		c.null = true
		return c, nil
	}
	rest, c.ifExists = strings.CutSuffix(rest, "IfExists")
	var ok bool
	if c.operator, ok = operators[rest]; !ok {
		return c, fmt.Errorf("condition operator %s is not supported here", name)
	}
	return c, nil
}

// holds evaluates the condition on what a request brings.
func (c condition) holds(context map[string][]string) bool {
	request, present := context[c.key]
	if c.null {
		return present != slices.ContainsFunc(c.values, func(v string) bool { return strings.EqualFold(v, "true") })
	}
	one := func(r string) bool {
		matched := slices.ContainsFunc(c.values, func(p string) bool { return c.operator.match(p, r) })
		return matched != c.operator.negated
	}
	switch {
	case c.set == "ForAllValues": // of none, all
		return !slices.ContainsFunc(request, func(r string) bool { return !one(r) })
	case !present && c.ifExists:
		return true
	case !present:
		return c.operator.negated && c.set == ""
	case c.operator.negated && c.set == "":
		return !slices.ContainsFunc(request, func(r string) bool { return !one(r) })
	default:
		return slices.ContainsFunc(request, one)
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
