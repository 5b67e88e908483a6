package envelope

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"github.com/tink-crypto/tink-go/v2/streamingaead/subtle"

	"github.com/matter-ops/kms-rotation/envelope/aead"
)

// An object too large for a row, in S3 for example, is encrypted as a stream under
// a key of its own. That key goes into the plaintext of a row, with the object's
// name: so the object is behind the write fence like the row, and a rotation
// rewraps it by rewrapping the row, without touching the object.
//
// An emergency rotation does not re-encrypt objects: who holds the old KEK and
// copies of its rows holds their keys. Write such objects again.

const (
	// StreamKeySize is the length of an object's key.
	StreamKeySize = 32

	streamVersion = 0x02    // the first byte of a stream
	streamSegment = 1 << 20 // bytes of ciphertext that are authenticated together
)

// NewStreamKey makes the key of one object.
func NewStreamKey() []byte {
	key := make([]byte, StreamKeySize)
	_, _ = rand.Read(key) // never fails, see crypto/rand
	return key
}

// NewEncryptingWriter encrypts what is written to w, as Tink's AES-256-GCM-HKDF
// with segments of 1 MiB behind one version byte. encctx, which must be UTF-8, is
// bound to the stream. The object is complete, and can only be read to its end, once
// Close has returned; Close does not close w.
func NewEncryptingWriter(w io.Writer, key []byte, encctx map[string]string) (io.WriteCloser, error) {
	s, err := newStream(key)
	if err == nil {
		err = checkText(encctx)
	}
	if err != nil {
		return nil, err
	}
	if _, err := w.Write([]byte{streamVersion}); err != nil {
		return nil, fmt.Errorf("write the stream's header: %w", err)
	}
	return s.NewEncryptingWriter(w, aead.AssociatedData(encctx))
}

// NewDecryptingReader decrypts a stream. Every byte that it returns is
// authenticated, and io.EOF means that the object is whole; a caller that acts on
// the bytes before must be able to undo. [ErrAltered] reports a stream that was
// altered or cut off, or whose key or context is another one.
func NewDecryptingReader(r io.Reader, key []byte, encctx map[string]string) (io.Reader, error) {
	s, err := newStream(key)
	if err != nil {
		return nil, err
	}
	var version [1]byte
	src := &source{r: r}
	if _, err := io.ReadFull(src, version[:]); err != nil {
		return nil, src.judge(err)
	}
	if version[0] != streamVersion {
		return nil, ErrFormat
	}
	d, err := s.NewDecryptingReader(src, aead.AssociatedData(encctx))
	if err != nil {
		return nil, src.judge(err)
	}
	return &decrypter{r: d, src: src}, nil
}

func newStream(key []byte) (*subtle.AESGCMHKDF, error) {
	if len(key) != StreamKeySize {
		return nil, aead.ErrKeySize
	}
	return subtle.NewAESGCMHKDF(key, "SHA256", StreamKeySize, streamSegment, 0)
}

// source remembers why reading failed, so that a lost connection is not taken for
// an altered object.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

func (s *source) judge(err error) error {
	if s.err != nil {
		return s.err
	}
	return streamError(err)
}

func streamError(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the stream is cut off: %w", ErrFormat)
	}
	return ErrAltered
}

type decrypter struct {
	r   io.Reader
	src *source
	err error
}

func (d *decrypter) Read(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	n, err := d.r.Read(p)
	switch {
	case err == nil:
	case err == io.EOF:
		d.err = io.EOF
	case d.src.err != nil:
		d.err = d.src.err
	default:
		d.err = ErrAltered
	}
	return n, d.err
}
