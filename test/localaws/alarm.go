package localaws

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/matter-ops/kms-rotation/test/localaws/backend"
)

// createAlarm creates an alarm over CloudWatch's Query protocol: the SDK speaks
// CBOR, which moto does not.
func createAlarm(ctx context.Context, d *deployment, e extra) error {
	properties, err := filled(e.properties, d.outputs)
	if err != nil {
		return err
	}
	form := url.Values{"Action": {"PutMetricAlarm"}, "Version": {"2010-08-01"}, "AlarmName": {d.name + "-" + e.logical}}
	flatten(form, "", properties)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, aws.ToString(d.moto.BaseEndpoint)+"/", strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	// moto routes by the scope and does not look at the signature.
	req.Header.Set("Authorization", fmt.Sprintf("AWS4-HMAC-SHA256 Credential=%s/%s/%s/monitoring/aws4_request, SignedHeaders=host, Signature=%s",
		AccessKey, time.Now().UTC().Format("20060102"), d.region, backend.Secret))
	resp, err := d.moto.HTTPClient.Do(req)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("PutMetricAlarm: status %d: %s", resp.StatusCode, body)
	}
	return errors.Join(err, resp.Body.Close())
}

// flatten writes a value as the Query protocol has it: A.member.1.B=….
func flatten(form url.Values, name string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			key := k
			if name != "" {
				key = name + "." + k
			}
			flatten(form, key, v[k])
		}
	case []any:
		for i := range v {
			flatten(form, fmt.Sprintf("%s.member.%d", name, i+1), v[i])
		}
	default:
		form.Set(name, fmt.Sprint(v))
	}
}
