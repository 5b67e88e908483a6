package envelope

import (
	"crypto/fips140"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"github.com/tink-crypto/tink-go/v2/streamingaead/subtle"

	"github.com/matter-ops/kms-rotation/envelope/aead"
)

// An object that is too large for a row, in S3 for example, is encrypted as a stream under
// a key of its own. Store that key in the plaintext of a row, with the object's name: then
// the row's fence protects the object too, and a rotation rewraps the row and need not
// touch the object.
//
// An emergency rotation does not re-encrypt objects. A person who has the old KEK and
// copies of its rows has the objects' keys: write such objects again under new keys.
//
//	0x02 ‖ Tink's AES-256-GCM-HKDF stream, SHA-256, segments of 1 MiB

const (
	// StreamKeySize is the length of an object's key.
	StreamKeySize = 32

	streamVersion = 0x02    // the first byte of a stream
	streamSegment = 1 << 20 // bytes of ciphertext that are authenticated together
)

// NewStreamKey returns a random key for one object.
func NewStreamKey() []byte {
	key := make([]byte, StreamKeySize)
	_, _ = rand.Read(key) // never fails, see crypto/rand
	return key
}

// NewEncryptingWriter returns a writer that encrypts to w. encctx, which must be UTF-8, is
// bound to the stream. The object is complete only after Close has returned without an
// error; Close does not close w.
func NewEncryptingWriter(w io.Writer, key []byte, encctx map[string]string) (io.WriteCloser, error) {
	s, err := newStream(key)
	if err == nil {
		err = checkContextText(encctx)
	}
	if err != nil {
		return nil, err
	}
	if _, err := w.Write([]byte{streamVersion}); err != nil {
		return nil, fmt.Errorf("write the stream's header: %w", err)
	}
	return s.NewEncryptingWriter(w, aead.AssociatedData(encctx))
}

// NewDecryptingReader returns a reader that decrypts a stream. Every byte that it returns
// is authenticated, but only io.EOF says that the object is complete: a caller that uses
// bytes earlier must be able to undo that. The error is [ErrAltered] for a stream that was
// altered or truncated, or that has another key or context, and [ErrFormat] for an unknown
// version.
func NewDecryptingReader(r io.Reader, key []byte, encctx map[string]string) (io.Reader, error) {
	s, err := newStream(key)
	if err != nil {
		return nil, err
	}
	var version [1]byte
	src := &trackingReader{r: r}
	if _, err := io.ReadFull(src, version[:]); err != nil {
		return nil, src.classifyError(err)
	}
	if version[0] != streamVersion {
		return nil, ErrFormat
	}
	d, err := s.NewDecryptingReader(src, aead.AssociatedData(encctx))
	if err != nil {
		return nil, src.classifyError(err)
	}
	return &decrypter{r: d, src: src}, nil
}

// newStream returns the cipher of a stream under an object's key.
func newStream(key []byte) (*subtle.AESGCMHKDF, error) {
	if len(key) != StreamKeySize {
		return nil, aead.ErrKeySize
	}
	if fips140.Enforced() {
		return nil, ErrNotApproved
	}
	return subtle.NewAESGCMHKDF(key, "SHA256", StreamKeySize, streamSegment, 0)
}

// trackingReader keeps the error of the reader below, so that a lost connection is not
// reported as an altered object.
type trackingReader struct {
	r   io.Reader
	err error
}

func (s *trackingReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// classifyError returns the error of the reader below if it failed, else what err means for
// the stream.
func (s *trackingReader) classifyError(err error) error {
	if s.err != nil {
		return s.err
	}
	return classifyStreamError(err)
}

func classifyStreamError(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the stream is truncated: %w", ErrFormat)
	}
	return ErrAltered
}

// decrypter translates the errors of Tink's reader and repeats the first one.
type decrypter struct {
	r   io.Reader
	src *trackingReader
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
