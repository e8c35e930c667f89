package store

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/dgraph-io/badger/v4"

	"github.com/meshq/meshq/transport/wire"
)

// Open opens the data directory, or makes it. Damage never keeps it from opening
// (P9): a part that does not open is moved to the folder "aside", and Recovered says
// what is affected. The error is ErrInUse if another process has the directory;
// any other means that the disk itself fails.
func Open(o Options) (*Store, *Recovered, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, nil, err
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(filepath.Join(o.Dir, "segments"), 0o700); err != nil {
		return nil, nil, fmt.Errorf("make data directory: %w", err)
	}
	held, err := lock(o.Dir)
	if err != nil {
		return nil, nil, err
	}
	op := &opening{o: &o, rec: &Recovered{}, damaged: make(map[wire.PartitionID]struct{})}
	s, err := op.open(held)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open data directory %s: %w", o.Dir, err), op.undo(), held.Close())
	}
	return s, op.rec, nil
}

// opening is the state of one Open.
type opening struct {
	o       *Options
	rec     *Recovered
	damaged map[wire.PartitionID]struct{}
	lostAll bool // DamagedAll, found by this Open

	isNew    bool
	bound    watermark // what must be there
	found    watermark // what is there
	highest  uint64    // number of any group seen or confirmed
	nextID   uint64
	metaLost bool
	sums     map[uint64]summaryRecord // by segment, from meta
	intents  map[uint64]struct{}      // segments that were being dropped
	refs     []sizedRef
	unclean  *segmentMark // head of meta's last group

	meta *instance
	head *instance
	file *watermarkFile
}

// undo closes what was opened when Open fails.
func (p *opening) undo() error {
	var errs []error
	if p.head != nil {
		errs = append(errs, p.head.close())
	}
	if p.meta != nil {
		errs = append(errs, p.meta.close())
	}
	if p.file != nil {
		errs = append(errs, p.file.close())
	}
	return errors.Join(errs...)
}

// loseAll notes that something was lost and that it may be of any partition.
func (p *opening) loseAll(why string, args ...any) {
	p.o.Logger.Warn("store came back damaged: "+why, args...)
	p.lostAll = true
}

func (p *opening) lose(partition wire.PartitionID) { p.damaged[partition] = struct{}{} }

func (p *opening) open(held *os.File) (*Store, error) {
	o := p.o
	free, _, err := space(o.Dir)
	if err != nil {
		return nil, err
	}
	if free < o.MinFree {
		// Opening takes some room, and a write without it would kill the process.
		if err := removeFile(filepath.Join(o.Dir, ballastName)); err != nil {
			return nil, err
		}
	}
	id, err := p.identify()
	if err != nil {
		return nil, err
	}
	p.rec.Node, p.rec.Boot = id.node, id.boot
	if err := p.readWatermark(); err != nil {
		return nil, err
	}
	if err := p.openMeta(); err != nil {
		return nil, err
	}
	s := &Store{
		o: o, lock: held, identity: id, meta: p.meta, segments: newSegments(o),
		index:    &index{lanes: make(map[laneKey]*laneIndex)},
		queue:    newQueue(o.QueueBytes, o.QueueOps),
		prepared: make(chan *segment), wake: make(chan struct{}, 1), removals: make(chan struct{}, 1),
		advised: make(map[string]struct{}),
	}
	if err := p.openSegments(s); err != nil {
		return nil, err
	}
	if err := p.readRecords(); err != nil {
		return nil, err
	}
	if p.found.meta < p.bound.meta {
		p.loseAll("meta has less than was confirmed", "group", p.found.meta, "confirmed", p.bound.meta)
	}
	if id.flags&(flagInterval|flagClosed) == flagInterval && (id.machine == 0 || id.machine != xxhash.Sum64String(machineBoot())) {
		p.loseAll("the machine stopped while fsyncs were behind")
	}
	p.rec.Commit = p.found.commit
	if err := p.keepReport(); err != nil {
		return nil, err
	}
	p.rec.Refs = mergeRefs(p.refs)
	p.refs = nil

	next := id
	next.machine, next.flags = xxhash.Sum64String(machineBoot()), 0
	if o.Sync == SyncInterval {
		next.flags = flagInterval
	}
	if err := next.save(o.Dir); err != nil {
		return nil, err
	}
	s.identity = next
	s.report.Store(p.rec.DamagedAll || len(p.rec.Damaged) > 0)
	if err := p.start(s); err != nil {
		return nil, err
	}
	return s, nil
}

// identify reads who the directory is, and counts this boot, durably. A
// directory that no longer knows who it is joins anew: all in it is set aside.
func (p *opening) identify() (identity, error) {
	dir := p.o.Dir
	id, err := loadIdentity(dir)
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errDamaged):
		p.isNew = true
		if err := p.clearOut(err); err != nil {
			return id, err
		}
		if id, err = mint(); err != nil {
			return id, err
		}
	default:
		return id, err
	}
	id.boot++
	return id, id.countBoot(dir)
}

// countBoot makes the new boot number durable, and leaves the rest as it was found:
// how the last boot ended is judged later.
func (id identity) countBoot(dir string) error {
	return id.save(dir)
}

// clearOut sets aside what a directory without identity holds.
func (p *opening) clearOut(why error) error {
	entries, err := os.ReadDir(filepath.Join(p.o.Dir, "segments"))
	if err != nil {
		return err
	}
	var old []string
	for _, e := range entries {
		old = append(old, filepath.Join(p.o.Dir, "segments", e.Name()))
	}
	for _, name := range []string{"meta", "watermark", identityFiles[0], identityFiles[1]} {
		if _, err := os.Lstat(filepath.Join(p.o.Dir, name)); err == nil {
			old = append(old, filepath.Join(p.o.Dir, name))
		}
	}
	if len(old) == 0 {
		return nil
	}
	p.loseAll("its identity is gone, it becomes a new node", "err", why)
	for _, path := range old {
		if _, err := setAside(p.o.Dir, path); err != nil {
			return err
		}
	}
	return nil
}

func (p *opening) readWatermark() (err error) {
	p.file, p.bound, err = openWatermark(filepath.Join(p.o.Dir, "watermark"))
	if errors.Is(err, errDamaged) {
		if !p.isNew {
			p.loseAll("what it confirmed is not known", "err", err)
		}
		err = nil
	}
	p.highest = p.bound.commit
	return err
}

// openMeta opens meta, or sets it aside and makes a new one, and reads what it
// says of segments.
func (p *opening) openMeta() error {
	dir := filepath.Join(p.o.Dir, "meta")
	_, err := os.Stat(dir)
	missing := errors.Is(err, fs.ErrNotExist)
	if missing && !p.isNew && p.bound.commit > 0 {
		p.metaLost = true
		p.loseAll("meta is missing")
	}
	for try := 0; ; try++ {
		p.sums, p.intents = make(map[uint64]summaryRecord), make(map[uint64]struct{})
		p.meta, err = openInstance(metaOptions(p.o, dir), p.o.Logger)
		if err == nil {
			if err = p.readMeta(); err == nil {
				break
			}
			if cerr := p.meta.close(); cerr != nil {
				p.o.Logger.Warn("meta did not close", "err", cerr)
			}
			p.meta = nil
		}
		if try > 0 {
			return fmt.Errorf("new meta: %w", err)
		}
		p.metaLost = true
		p.loseAll("meta does not open and is set aside", "err", err)
		if _, err := setAside(p.o.Dir, dir); err != nil {
			return err
		}
	}
	return errors.Join(syncDir(dir), syncDir(p.o.Dir))
}

// summaryRecord is what meta says of a sealed segment: that it must be there,
// and how much is in it. Value: batches u64 | group u64.
type summaryRecord struct{ batches, group uint64 }

func (r summaryRecord) encode() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, r.batches), r.group)
}

func (p *opening) readMeta() error {
	g, _, err := lastGroup(p.meta.db, keyGroup)
	if err != nil {
		return err
	}
	p.found.meta, p.found.commit = g.group, g.group
	if g.group > 0 && g.flags&groupLast == 0 {
		p.found.commit-- // cut short between its transactions
	}
	p.highest = max(p.highest, g.group)
	if g.segment.id > 0 {
		p.unclean = &g.segment
	}
	return eachValue(p.meta.db, []byte{keyInternal}, nil, func(key, stored []byte) error {
		value, err := checkValue(key, stored)
		if err != nil {
			p.loseAll("a record of segments is damaged", "err", err)
			return nil
		}
		if len(key) != len(keySummaries)+8 {
			return nil
		}
		id := binary.BigEndian.Uint64(key[2:])
		p.nextID = max(p.nextID, id)
		switch string(key[:2]) {
		case string(keyIntents):
			p.intents[id] = struct{}{}
		case string(keySummaries):
			if len(value) == 16 {
				p.sums[id] = summaryRecord{binary.BigEndian.Uint64(value), binary.BigEndian.Uint64(value[8:])}
			}
		}
		return nil
	})
}

// eachValue calls f for the stored records whose stored key begins with prefix and
// is at or after from, in order, until it returns an error. key and stored are only valid in f.
func eachValue(db *badger.DB, prefix, from []byte, f func(key, stored []byte) error) error {
	txn := db.NewTransaction(false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{Prefix: prefix, PrefetchValues: true, PrefetchSize: 64})
	defer it.Close()
	for it.Seek(from); it.Valid(); it.Next() {
		item := it.Item()
		if err := item.Value(func(stored []byte) error { return f(item.Key(), stored) }); err != nil {
			return err
		}
	}
	return nil
}

// openSegments loads what all segments hold. None of them is written to any more:
// each boot begins a new head.
func (p *opening) openSegments(s *Store) error {
	entries, err := os.ReadDir(s.segments.root)
	if err != nil {
		return err
	}
	here := make(map[uint64]struct{})
	for _, e := range entries {
		id, del, ok := parseSegment(e.Name())
		if !ok {
			continue
		}
		p.nextID = max(p.nextID, id)
		if _, dropped := p.intents[id]; dropped && !del {
			path := s.segments.path(id)
			if err := os.Rename(path, path+".del"); err != nil {
				return err
			}
			del = true
		}
		if !del {
			here[id] = struct{}{}
		}
	}
	marks := make(map[uint64]segmentMark)
	bound := func(m segmentMark) {
		if have, ok := marks[m.id]; !ok || m.group > have.group {
			marks[m.id] = m
		}
		p.nextID = max(p.nextID, m.id)
		p.highest = max(p.highest, m.group)
	}
	for _, m := range p.bound.segments {
		bound(m)
	}
	if p.unclean != nil {
		if _, ok := here[p.unclean.id]; ok { // else it was dropped since
			bound(*p.unclean)
		}
	}
	for id := range p.sums {
		if _, ok := here[id]; ok {
			continue
		}
		if _, dropped := p.intents[id]; !dropped {
			p.loseAll("a segment is missing", "segment", id)
		}
	}
	for id, m := range marks {
		if _, ok := here[id]; !ok && m.batches > 0 {
			if _, dropped := p.intents[id]; !dropped {
				p.loseAll("a segment is missing", "segment", id)
			}
		}
	}
	ids := make([]uint64, 0, len(here))
	for id := range here {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		if err := p.openSegment(s, id, marks[id]); err != nil {
			return err
		}
	}
	// The next head has a number that no segment ever had: what is aside counts too.
	aside, _ := os.ReadDir(filepath.Join(p.o.Dir, "aside"))
	for _, e := range aside {
		name := e.Name()
		if id, _, ok := parseSegment(name[:min(8, len(name))]); ok {
			p.nextID = max(p.nextID, id)
		}
	}
	return nil
}

// openSegment loads one segment: by its summary, or else by its keys.
func (p *opening) openSegment(s *Store, id uint64, mark segmentMark) error {
	dir := s.segments.path(id)
	want, known := p.sums[id]
	unused, err := isUnused(dir)
	if err != nil {
		return err
	}
	if unused {
		if known || mark.batches > 0 {
			p.loseAll("a segment is empty", "segment", id, "confirmed_batches", max(mark.batches, want.batches))
		}
		return os.Rename(dir, dir+".del")
	}
	seg := newSegment(id, dir)
	sum, err := readSummary(dir)
	switch {
	case err == nil && sum.segment == id && (!known || want.batches == sum.batches && want.group == sum.group):
		seg.recorded = known
		p.load(s, seg, sum)
		return nil
	case err == nil, errors.Is(err, errDamaged):
		p.o.Logger.Warn("summary of a segment is damaged: it is read again", "segment", id, "err", err)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	sum, err = p.scan(s, seg)
	if err != nil {
		p.loseAll("a segment does not open and is set aside", "segment", id, "err", err)
		s.segments.retire(seg)
		to, err := setAside(p.o.Dir, dir)
		if err != nil {
			return err
		}
		p.o.Logger.Warn("segment is kept aside", "path", to)
		return nil
	}
	if known && sum.batches < want.batches || sum.group < mark.group || sum.batches < mark.batches {
		p.loseAll("a segment has less than was confirmed", "segment", id,
			"group", sum.group, "confirmed_group", mark.group, "batches", sum.batches, "confirmed_batches", max(mark.batches, want.batches))
	}
	if len(sum.refs) == 0 {
		s.segments.retire(seg)
		return os.Rename(dir, dir+".del")
	}
	// The summary is the authority from now on, also for what was left out.
	if err := sum.write(dir); err != nil {
		return err
	}
	p.load(s, seg, sum)
	return nil
}

// scan reads the keys of a segment that has no summary.
func (p *opening) scan(s *Store, seg *segment) (sum *summary, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("segment %d: panic: %v: %w", seg.id, r, errDamaged)
		}
	}()
	db, err := s.segments.acquire(seg)
	if err != nil {
		return nil, err
	}
	defer s.segments.release(seg)
	g, version, err := lastGroup(db, keySegmentGroup)
	if err != nil {
		return nil, err
	}
	p.highest = max(p.highest, g.group)
	p.bound.meta = max(p.bound.meta, g.meta)
	undone, end := uint64(0), uint64(0)
	if g.group > 0 && (g.flags&groupLast == 0 || g.flags&groupMixed != 0 && g.group > p.found.meta && !p.metaLost) {
		// The group was cut short; nobody was told that it is there.
		undone, end = version-min(g.part, version), version+1
		p.o.Logger.Info("a group that was not completed is left out", "segment", seg.id, "group", g.group)
	}
	sum, err = summarise(seg.id, db, undone, end)
	if err != nil {
		return nil, err
	}
	sum.group = g.group
	if undone == end {
		p.found.commit = max(p.found.commit, g.group)
	} else {
		sum.group--
	}
	return sum, nil
}

func (p *opening) load(s *Store, seg *segment, sum *summary) {
	p.refs = append(p.refs, sum.refs...)
	p.highest = max(p.highest, sum.group)
	p.found.commit = max(p.found.commit, sum.group)
	s.index.load(seg, sum)
}

// mergeRefs puts the refs of all segments in key order. What is in two segments
// (a copy was under way) comes once.
func mergeRefs(refs []sizedRef) []wire.BatchRef {
	byKey := func(a, b sizedRef) int {
		return cmp.Or(cmp.Compare(a.Partition, b.Partition), a.Lane.Compare(b.Lane), cmp.Compare(a.Base, b.Base),
			cmp.Compare(a.Producer, b.Producer), cmp.Compare(a.Sequence, b.Sequence), cmp.Compare(b.Count, a.Count))
	}
	if !slices.IsSortedFunc(refs, byKey) {
		slices.SortFunc(refs, byKey)
	}
	out := make([]wire.BatchRef, 0, len(refs))
	for i := range refs {
		r := refs[i].BatchRef
		if n := len(out); n > 0 {
			last := &out[n-1]
			same := last.Partition == r.Partition && last.Lane == r.Lane && last.Producer == r.Producer &&
				r.Sequence-last.Sequence == uint64(r.Base-last.Base) // modulo 2^64
			if end := last.Base + wire.Offset(last.Count); same && r.Base <= end {
				if to := r.Base + wire.Offset(r.Count); to > end {
					last.Count += uint64(to - end)
					last.Stamp = r.Stamp
				}
				continue
			}
		}
		out = append(out, r)
	}
	return slices.Clip(out)
}

// readRecords loads the records that are not lazy.
func (p *opening) readRecords() error {
	lazy := make([][]byte, 0, len(p.o.LazyPrefixes))
	for _, l := range p.o.LazyPrefixes {
		lazy = append(lazy, append([]byte{keyRecord}, l...))
	}
	slices.SortFunc(lazy, slices.Compare)
	from := []byte{keyRecord}
	for {
		var skip []byte
		err := eachValue(p.meta.db, []byte{keyRecord}, from, func(key, stored []byte) error {
			for _, l := range lazy {
				if len(key) >= len(l) && string(key[:len(l)]) == string(l) {
					skip = l
					return errSkip
				}
			}
			value, err := checkValue(key, stored)
			if err != nil {
				p.loseRecord(key[1:], err)
				return nil
			}
			p.rec.Records = append(p.rec.Records, wire.StoredRecord{Key: slices.Clone(key[1:]), Value: slices.Clone(value)})
			return nil
		})
		if err == nil {
			return nil
		}
		if !errors.Is(err, errSkip) {
			return fmt.Errorf("read records: %w", err)
		}
		if from = after(skip); from == nil {
			return nil
		}
	}
}

var errSkip = errors.New("skip")

// after is the first key that does not begin with prefix and is above those that do;
// nil if there is none.
func after(prefix []byte) []byte {
	end := slices.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

func (p *opening) loseRecord(key []byte, err error) {
	if partition, ok := recordPartition(key); ok {
		p.o.Logger.Warn("a record is damaged", "partition", partition, "err", err)
		p.lose(partition)
		return
	}
	p.loseAll("a record is damaged", "err", err)
}

// damagedName is a file that says what was reported as damaged and not yet known
// to be acted upon: until the first commit of a boot is done, the next boot
// reports it again. Big endian: "meshqdm1" | all u64 | partitions u64... | checksum u64.
const (
	damagedName  = "damaged"
	damagedMagic = "meshqdm1"
)

func encodeReport(all bool, partitions []wire.PartitionID) []byte {
	b := []byte(damagedMagic)
	n := uint64(0)
	if all {
		n = 1
	}
	b = binary.BigEndian.AppendUint64(b, n)
	for _, p := range partitions {
		b = binary.BigEndian.AppendUint64(b, uint64(p))
	}
	return binary.BigEndian.AppendUint64(b, xxhash.Sum64(b))
}

func decodeReport(b []byte) (all bool, partitions []wire.PartitionID, err error) {
	if len(b) < 24 || len(b)%8 != 0 || string(b[:8]) != damagedMagic ||
		binary.BigEndian.Uint64(b[len(b)-8:]) != xxhash.Sum64(b[:len(b)-8]) {
		return true, nil, fmt.Errorf("report of damage: %w", errDamaged)
	}
	all = binary.BigEndian.Uint64(b[8:]) != 0
	for rest := b[16 : len(b)-8]; len(rest) > 0; rest = rest[8:] {
		partitions = append(partitions, wire.PartitionID(binary.BigEndian.Uint64(rest)))
	}
	return all, partitions, nil
}

// keepReport adds what an earlier boot reported, and makes the report durable.
func (p *opening) keepReport() error {
	path := filepath.Join(p.o.Dir, damagedName)
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		all, partitions, err := decodeReport(b)
		if err != nil {
			p.o.Logger.Warn("what an earlier boot found damaged is not known", "err", err)
		}
		p.lostAll = p.lostAll || all
		for _, id := range partitions {
			p.lose(id)
		}
	}
	for id := range p.damaged {
		p.rec.Damaged = append(p.rec.Damaged, id)
	}
	slices.Sort(p.rec.Damaged)
	p.rec.DamagedAll = p.lostAll
	if !p.lostAll && len(p.damaged) == 0 {
		return nil
	}
	return writeFile(path, encodeReport(p.lostAll, p.rec.Damaged))
}

// lostNumbers are left out after a loss: the watermark may be among what is lost, then
// nothing here tells which numbers were confirmed. Peers remember the highest of each boot: with
// numbers that are used again the node would find less than they remember at its next boot
// too, and repair what is whole. They are more than the groups between two fsyncs, and fit
// into the numbers four billion times.
const lostNumbers = 1 << 32

// start makes the new head and starts the goroutines.
func (p *opening) start(s *Store) (err error) {
	s.nextID.Store(p.nextID + 1)
	head, err := s.segments.create(s.nextID.Add(1) - 1)
	if err != nil {
		return err
	}
	p.head = head.in
	if err := s.segments.use(head); err != nil {
		return err
	}
	s.index.rotate(head)
	if s.metrics, err = newMetrics(s, s.o.Registerer); err != nil {
		return err
	}
	s.commit.Store(p.rec.Commit)
	number := max(p.highest, p.rec.Commit)
	if p.rec.DamagedAll {
		number += lostNumbers
	}
	c := &committer{
		s: s, queue: s.queue, disk: &disk{o: s.o, s: s}, file: p.file, head: head, number: number,
		overlay: make(map[laneKey]wire.Runs), lastScan: time.Now(),
		mark: watermark{commit: number, meta: p.found.meta, sequence: p.bound.sequence, segments: []segmentMark{{id: head.id}}},
	}
	s.committer = c
	c.disk.check()
	if err := makeBallast(s.o, s.free.Load()); err != nil {
		s.o.Logger.Warn("no ballast file", "err", err)
	}
	// The new bound is durable before anything is confirmed by it.
	if err := errors.Join(p.file.write(&c.mark), p.file.write(&c.mark), p.file.sync()); err != nil {
		s.metrics.unregister()
		return err
	}
	s.adviseWritten(head)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.committed.Go(c.run)
	s.workers.Go(s.prepare)
	s.workers.Go(s.keep)
	s.workers.Go(func() { s.remove(p.intents) })
	s.workers.Go(s.scrub)
	return nil
}
