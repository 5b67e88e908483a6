package backend_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/matter-ops/kms-rotation/test/localaws/backend"
)

func TestServers(t *testing.T) {
	moto := func(t *testing.T) (*backend.Server, error) {
		t.Helper()
		return backend.Moto(t.Context(), backend.MotoOptions{CallbackPort: 9})
	}
	dynamo := func(t *testing.T) (*backend.Server, error) {
		t.Helper()
		return backend.DynamoDB(t.Context())
	}
	for name, start := range map[string]func(*testing.T) (*backend.Server, error){"moto": moto, "dynoxide": dynamo} {
		t.Run(name, func(t *testing.T) {
			s, err := start(t)
			if errors.Is(err, backend.ErrNotInstalled) && os.Getenv("CI") != "true" && os.Getenv("MATTER_REQUIRE_LOCAL") != "1" {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			s.Stop()
			s.Stop()
			if err := syscall.Kill(s.Pid(), 0); !errors.Is(err, syscall.ESRCH) {
				t.Errorf("after Stop the process still exists: %v", err)
			}
		})
	}
}

func TestNotInstalled(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("MATTER_DYNOXIDE", "")
	t.Setenv("MATTER_MOTO_SERVER", "")
	t.Setenv("MATTER_ROOT", dir)
	_, err := backend.DynamoDB(t.Context())
	if !errors.Is(err, backend.ErrNotInstalled) || !strings.Contains(err.Error(), dir) {
		t.Errorf("DynamoDB: %v", err)
	}
	_, err = backend.Moto(t.Context(), backend.MotoOptions{})
	if !errors.Is(err, backend.ErrNotInstalled) || !strings.Contains(err.Error(), dir) {
		t.Errorf("Moto: %v", err)
	}
}

// TestStartSaysWhy starts a program that prints and fails.
func TestStartSaysWhy(t *testing.T) {
	program := filepath.Join(t.TempDir(), "moto_server")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho no such module >&2\nexit 3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("MATTER_MOTO_SERVER", program)
	_, err := backend.Moto(t.Context(), backend.MotoOptions{})
	if err == nil || !strings.Contains(err.Error(), "no such module") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("err = %v", err)
	}
}

func TestRoot(t *testing.T) {
	t.Setenv("MATTER_ROOT", "") // as make sets it
	root, err := backend.Root()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Error(err)
	}
	t.Chdir(t.TempDir())
	if _, err := backend.Root(); err == nil {
		t.Error("a module root outside of a module")
	}
}
