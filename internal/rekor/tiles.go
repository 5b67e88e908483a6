package rekor

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/matter-ops/kms-rotation/audit"
)

const tileHeight = 8 // of every log under https://c2sp.org/tlog-tiles

// proveInclusion returns the inclusion path of entry i in the tree of a checkpoint. The
// reader verifies the tiles against the root.
func (c *Client) proveInclusion(ctx context.Context, l audit.Log, at audit.Checkpoint, i int64) ([][]byte, error) {
	tree := tlog.Tree{N: int64(at.Size)} //nolint:gosec // 63 bits, see audit
	copy(tree.Hash[:], at.Root)
	proof, err := tlog.ProveRecord(tree.N, i, tlog.TileHashReader(tree, &tiles{ctx: ctx, c: c, log: l}))
	if err != nil {
		return nil, fmt.Errorf("prove from tiles: %w", err)
	}
	return toSlices(proof), nil
}

// Consistency implements [anchor.TransparencyLog]. The proof is made from the tiles of
// the tree of the checkpoint at. If tiles were read but do not belong to that tree, the
// error is [audit.ErrConsistency], not a transient one: the log has forked.
func (c *Client) Consistency(ctx context.Context, l audit.Log, earlier, at audit.Checkpoint) ([][]byte, error) {
	tree := tlog.Tree{N: int64(at.Size)} //nolint:gosec // 63 bits, see audit
	copy(tree.Hash[:], at.Root)
	reader := &tiles{ctx: ctx, c: c, log: l}
	proof, err := tlog.ProveTree(tree.N, int64(earlier.Size), tlog.TileHashReader(tree, reader)) //nolint:gosec // 63 bits
	switch {
	case reader.err != nil:
		return nil, fmt.Errorf("prove consistency from tiles: %w", reader.err)
	case err != nil:
		return nil, fmt.Errorf("%w: tree sizes %d and %d: %w", audit.ErrConsistency, earlier.Size, at.Size, err)
	}
	return toSlices(proof), nil
}

func toSlices(proof []tlog.Hash) [][]byte {
	out := make([][]byte, len(proof))
	for n, h := range proof {
		out[n] = h[:]
	}
	return out
}

// tiles is a [tlog.TileReader] of a log, for one call.
type tiles struct {
	ctx context.Context
	c   *Client
	log audit.Log
	err error // of the last read
}

// Height implements [tlog.TileReader].
func (t *tiles) Height() int { return tileHeight }

// SaveTiles implements [tlog.TileReader]. Tiles are not kept: one proof needs each once.
func (t *tiles) SaveTiles([]tlog.Tile, [][]byte) {}

// ReadTiles implements [tlog.TileReader]. A log may delete a partial tile once the full
// tile exists, so the full one is read then (c2sp.org/tlog-tiles, "Partial tiles").
func (t *tiles) ReadTiles(want []tlog.Tile) (_ [][]byte, err error) {
	defer func() { t.err = err }()
	out := make([][]byte, len(want))
	for i, tile := range want {
		b, status, err := t.readTile(tile)
		if status == http.StatusNotFound && tile.W < 1<<tileHeight {
			full := tile
			full.W = 1 << tileHeight
			b, status, err = t.readTile(full)
		}
		size := tile.W * tlog.HashSize
		switch {
		case err != nil:
			return nil, err
		case status != http.StatusOK:
			return nil, fmt.Errorf("%s: HTTP status %d", tilePath(tile), status)
		case len(b) < size:
			return nil, fmt.Errorf("%s: it has %d bytes, less than %d", tilePath(tile), len(b), size)
		}
		out[i] = b[:size]
	}
	return out, nil
}

// readTile reads one tile and returns its bytes and the HTTP status.
func (t *tiles) readTile(tile tlog.Tile) ([]byte, int, error) {
	a, err := t.c.sendRequest(t.ctx, http.MethodGet, strings.TrimSuffix(t.log.URL, "/")+readPath+tilePath(tile), nil)
	return a.body, a.status, err
}

// tilePath returns the path of a tile: as package tlog writes it, without the height.
func tilePath(t tlog.Tile) string {
	return "tile/" + strings.TrimPrefix(t.Path(), fmt.Sprintf("tile/%d/", t.H))
}
