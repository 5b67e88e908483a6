package localaws

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/matter-ops/kms-rotation/test/localaws/backend"
)

// Env returns the environment with which any AWS client, and the operator's CLI,
// work against the stack: endpoint, region, credentials, the state machines, the
// MATTER_ variables that the functions have, and the seed of sources.
func (s *Stack) Env() map[string]string { return maps.Clone(s.environment) }

func (s *Stack) buildEnv() map[string]string {
	env := map[string]string{}
	for _, f := range s.host.Functions() {
		for k, v := range f.Env {
			if _, ok := env[k]; !ok && strings.HasPrefix(k, "MATTER_") {
				env[k] = v
			}
		}
	}
	for name, output := range map[string]string{"MATTER_SOURCES": "SeedSources", "MATTER_CORPUS": "SeedCorpus"} {
		if v, ok := s.Outputs[output]; ok {
			env[name] = v
		}
	}
	maps.Copy(env, map[string]string{
		"AWS_ENDPOINT_URL":                   s.URL,
		"AWS_REGION":                         s.Region,
		"AWS_DEFAULT_REGION":                 s.Region,
		"AWS_ACCESS_KEY_ID":                  AccessKey,
		"AWS_SECRET_ACCESS_KEY":              backend.Secret,
		"MATTER_STATE_MACHINE_ARN":           s.stateMachine,
		"MATTER_EMERGENCY_STATE_MACHINE_ARN": s.emergency,
		"AWS_EC2_METADATA_DISABLED":          "true",
	})
	return env
}

// WriteEnv writes [Stack.Env] as a file for a shell to source. The file appears
// whole or not at all.
func (s *Stack) WriteEnv(path string) (err error) {
	var b bytes.Buffer
	for _, k := range names(s.environment) {
		fmt.Fprintf(&b, "export %s='%s'\n", k, strings.ReplaceAll(s.environment[k], "'", `'\''`))
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".env-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if _, err := f.Write(b.Bytes()); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
