// An outsider: holds a log to what Go's golang.org/x/mod says of it, which shares no line with Guard.
//
// The signed note is opened by sumdb/note, every tile and proof is checked by sumdb/tlog; only names of files and the lines of
// a receipt are read here. It must not be taught anything about Guard. Fails: exit 1 with the reason on stderr.
package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const usage = `usage: outsider log KEYFILE DIR            every entry and tile of a log against its checkpoint
       outsider proof KEYFILE PROOF RECORD  a receipt
       outsider growth KEYFILE OLD PROOF    a consistency proof
       outsider sign SECRETFILE             signs the text on stdin`

// Height of the tiles, as C2SP tlog-tiles has it.
const height, width = 8, 256

func main() {
	said, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "outsider:", err)
		os.Exit(1)
	}
	fmt.Print(said)
}

func run(args []string) (string, error) {
	switch {
	case len(args) == 3 && args[0] == "log":
		return checkLog(args[1], args[2])
	case len(args) == 4 && args[0] == "proof":
		return checkProof(args[1], args[2], args[3])
	case len(args) == 4 && args[0] == "growth":
		return checkGrowth(args[1], args[2], args[3])
	case len(args) == 2 && args[0] == "sign":
		return "", sign(args[1])
	}
	return "", errors.New(usage)
}

// open reads the tree that a signed checkpoint stands for.
func open(keyFile string, signed []byte) (tree tlog.Tree, err error) {
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return tree, err
	}
	verifier, err := note.NewVerifier(strings.TrimSpace(string(key)))
	if err != nil {
		return tree, fmt.Errorf("the key: %w", err)
	}
	opened, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return tree, fmt.Errorf("the checkpoint: %w", err)
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != verifier.Name() || lines[3] != "" {
		return tree, fmt.Errorf("the checkpoint is not origin, size and root: %q", opened.Text)
	}
	if tree.N, err = strconv.ParseInt(lines[1], 10, 64); err != nil {
		return tree, fmt.Errorf("the checkpoint's size: %w", err)
	}
	tree.Hash, err = tlog.ParseHash(lines[2])
	return tree, err
}

// folder gives tlog the tiles of a log.
type folder struct {
	dir  string
	held map[tlog.Tile][]byte
}

func (f *folder) Height() int                     { return height }
func (f *folder) SaveTiles([]tlog.Tile, [][]byte) {}

func (f *folder) ReadTiles(tiles []tlog.Tile) (all [][]byte, err error) {
	for _, tile := range tiles {
		data, known := f.held[tile]
		if !known {
			if data, err = os.ReadFile(filepath.Join(f.dir, name(strconv.Itoa(tile.L), tile.N, tile.W))); err != nil {
				return nil, err
			}
			f.held[tile] = data
		}
		all = append(all, data)
	}
	return all, nil
}

// name of a tile or bundle: tlog's own paths are those of the Go checksum database.
func name(level string, number int64, w int) string {
	path := fmt.Sprintf("%03d", number%1000)
	for number >= 1000 {
		number /= 1000
		path = fmt.Sprintf("x%03d/%s", number%1000, path)
	}
	if w < width {
		path += fmt.Sprintf(".p/%d", w)
	}
	return "tile/" + level + "/" + path
}

func checkLog(keyFile, dir string) (string, error) {
	signed, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		return "", err
	}
	tree, err := open(keyFile, signed)
	if err != nil {
		return "", err
	}
	hashes := tlog.TileHashReader(tree, &folder{dir, map[tlog.Tile][]byte{}})
	for first := int64(0); first < tree.N; first += width {
		count := min(tree.N-first, width)
		bundle, err := os.ReadFile(filepath.Join(dir, name("entries", first/width, int(count))))
		if err != nil {
			return "", err
		}
		for leaf := first; leaf < first+count; leaf++ {
			var entry []byte
			if entry, bundle, err = take(bundle); err != nil {
				return "", fmt.Errorf("entry %d: %w", leaf, err)
			}
			proof, err := tlog.ProveRecord(tree.N, leaf, hashes)
			if err != nil {
				return "", fmt.Errorf("proving leaf %d: %w", leaf, err)
			}
			if err := tlog.CheckRecord(proof, tree.N, tree.Hash, leaf, tlog.RecordHash(entry)); err != nil {
				return "", fmt.Errorf("leaf %d: %w", leaf, err)
			}
		}
		if len(bundle) > 0 {
			return "", fmt.Errorf("%d bytes after the entries of the bundle from %d", len(bundle), first)
		}
	}
	return fmt.Sprintf("verified %d entries under root %s\n", tree.N, tree.Hash), nil
}

func take(bundle []byte) (entry, rest []byte, err error) {
	if len(bundle) < 2 || len(bundle) < 2+int(binary.BigEndian.Uint16(bundle)) {
		return nil, nil, errors.New("the bundle ends before it")
	}
	end := 2 + int(binary.BigEndian.Uint16(bundle))
	return bundle[2:end], bundle[end:], nil
}

// proofFile splits a file into the number of its head line, hashes and checkpoint.
func proofFile(path string, head ...string) (number int64, hashes []tlog.Hash, signed []byte, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, nil, nil, err
	}
	before, signed, found := bytes.Cut(data, []byte("\n\n"))
	lines := strings.Split(string(before), "\n")
	if !found || len(lines) < len(head) {
		return 0, nil, nil, errors.New("the proof has no checkpoint")
	}
	for place, wanted := range head {
		rest, matches := strings.CutPrefix(lines[place], wanted)
		if !matches {
			return 0, nil, nil, fmt.Errorf("line %d is %q, not %q", place+1, lines[place], wanted)
		}
		if strings.HasSuffix(wanted, " ") {
			if number, err = strconv.ParseInt(rest, 10, 64); err != nil {
				return 0, nil, nil, err
			}
		}
	}
	for _, line := range lines[len(head):] {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return 0, nil, nil, err
		}
		hashes = append(hashes, hash)
	}
	return number, hashes, signed, nil
}

func checkProof(keyFile, proofPath, recordPath string) (string, error) {
	leaf, hashes, signed, err := proofFile(proofPath, "c2sp.org/tlog-proof@v1", "index ")
	if err != nil {
		return "", err
	}
	tree, err := open(keyFile, signed)
	if err != nil {
		return "", err
	}
	record, err := os.ReadFile(recordPath)
	if err != nil {
		return "", err
	}
	if err := tlog.CheckRecord(hashes, tree.N, tree.Hash, leaf, tlog.RecordHash(record)); err != nil {
		return "", err
	}
	return fmt.Sprintf("verified leaf %d of %d\n", leaf, tree.N), nil
}

func checkGrowth(keyFile, oldPath, proofPath string) (string, error) {
	older, err := os.ReadFile(oldPath)
	if err != nil {
		return "", err
	}
	old, err := open(keyFile, older)
	if err != nil {
		return "", err
	}
	from, hashes, signed, err := proofFile(proofPath, "old ")
	if err != nil {
		return "", err
	}
	tree, err := open(keyFile, signed)
	if err != nil {
		return "", err
	}
	if from != old.N {
		return "", fmt.Errorf("the proof is from %d, the older checkpoint has %d", from, old.N)
	}
	if err := tlog.CheckTree(hashes, tree.N, tree.Hash, old.N, old.Hash); err != nil {
		return "", err
	}
	return fmt.Sprintf("verified growth from %d to %d\n", old.N, tree.N), nil
}

// sign signs with a key that Guard wrote: how a forged head is made for the tests.
func sign(secretFile string) error {
	secret, err := os.ReadFile(secretFile)
	if err != nil {
		return err
	}
	signer, err := note.NewSigner(strings.TrimSpace(string(secret)))
	if err != nil {
		return fmt.Errorf("the secret: %w", err)
	}
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	signed, err := note.Sign(&note.Note{Text: string(text)}, signer)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(signed)
	return err
}
