package plan

// Kind is a kind of fault.
type Kind string

// Where a kind can be brought about.
const (
	InSim  = 1 << iota // in the simulator
	InReal             // on real processes
)

// KindInfo describes a kind of fault.
type KindInfo struct {
	Kind  Kind
	Where int
	// Subject is what On names: "node", "client", "any" (nodes and clients), or "" for
	// none; Other is what To names.
	Subject, Other string
	About          string // what it does, and what By, Share and Count mean
}

// The kinds of faults.
const (
	Crash    Kind = "crash"
	PowerCut Kind = "power-cut"
	Restart  Kind = "restart"
	Pause    Kind = "pause"
	Freeze   Kind = "freeze"
	SlowNode Kind = "slow-node"
	Twin     Kind = "twin"
	Join     Kind = "join"

	Cut       Kind = "cut"
	CutOneWay Kind = "cut-one-way"
	Split     Kind = "split"
	RingCut   Kind = "majorities-ring"
	Bridge    Kind = "bridge"
	Flap      Kind = "flap"
	Swizzle   Kind = "swizzle"
	SlowLink  Kind = "slow-link"
	Late      Kind = "late"
	Loss      Kind = "loss"
	Duplicate Kind = "duplicate"
	Bandwidth Kind = "bandwidth"
	Reset     Kind = "reset"
	HalfOpen  Kind = "half-open"
	Corrupt   Kind = "corrupt"

	DiskSlow     Kind = "disk-slow"
	DiskStall    Kind = "disk-stall"
	DiskFull     Kind = "disk-full"
	DiskError    Kind = "disk-error"
	Torn         Kind = "torn"
	Amnesia      Kind = "amnesia"
	Damage       Kind = "damage"
	DamageRecord Kind = "damage-record"
	OpenError    Kind = "open-error"
	Rollback     Kind = "rollback"
	Wipe         Kind = "wipe"
	KeyReturns   Kind = "key-returns"
	SlowRead     Kind = "slow-read"

	WallJump  Kind = "wall-jump"
	ClockRate Kind = "clock-rate"

	FalseDeath   Kind = "false-death"
	GossipCut    Kind = "gossip-cut"
	GossipSilent Kind = "gossip-silent"
	StaleRevive  Kind = "stale-revive"

	ConsumerCrash Kind = "consumer-crash"
	ConsumerPause Kind = "consumer-pause"
	ConsumerSlow  Kind = "consumer-slow"
	ProducerCrash Kind = "producer-crash"
	NackStorm     Kind = "nack-storm"
	Poison        Kind = "poison"
	Burst         Kind = "burst"
	AnswerLost    Kind = "answer-lost"
	DeleteQueue   Kind = "delete-queue"
	UpdateQueue   Kind = "update-queue"
	PauseQueue    Kind = "pause-queue"
)

// Kinds are all kinds of faults, in the order of the list above.
var Kinds = []KindInfo{
	{Crash, InSim | InReal, "node", "", "the process is killed (SIGKILL) and started again after For; Count n > 0: at the n-th effect after At, between what it persists and what it sends (simulator alone)"},
	{PowerCut, InSim | InReal, "node", "", "the machine loses power: what was not synced is gone, the last group of writes may be torn; started again after For"},
	{Restart, InSim | InReal, "node", "", "SIGTERM: it drains and ends; started again after For"},
	{Pause, InSim | InReal, "node", "", "the process stands still (SIGSTOP) for For; clocks go on"},
	{Freeze, InSim, "node", "", "the machine is suspended for For: its monotonic clock stands still as well (outside the promises: P4)"},
	{SlowNode, InSim | InReal, "node", "", "every step takes By longer, for For"},
	{Twin, InSim | InReal, "node", "", "a copy of its data directory is started as a second process, for For"},
	{Join, InSim | InReal, "", "", "Count new nodes are started and join"},

	{Cut, InSim | InReal, "any", "any", "nothing passes between On and To, for For"},
	{CutOneWay, InSim | InReal, "any", "any", "nothing passes from On to To, for For"},
	{Split, InSim | InReal, "any", "", "On, nodes and clients, and all others are cut off from each other, for For"},
	{RingCut, InSim | InReal, "node", "", "each node of On sees a majority of them, and no two see the same, for For"},
	{Bridge, InSim | InReal, "node", "", "the nodes of On are split in halves that only the first of them can reach both of, for For"},
	{Flap, InSim | InReal, "any", "any", "the link between On and To is cut and whole in turns of By, for For"},
	{Swizzle, InSim | InReal, "node", "", "the nodes of On are cut off one after another, By apart, and healed in another order"},
	{SlowLink, InSim | InReal, "any", "any", "frames from On to To take By longer, for For"},
	{Late, InSim | InReal, "", "", "one frame in Count is late by up to By, for For; later ones of other connections pass it"},
	{Loss, InSim | InReal, "any", "any", "the share Share of packets from On to To is lost and sent again by TCP, for For"},
	{Duplicate, InReal, "any", "any", "the share Share of packets from On to To arrives twice, for For"},
	{Bandwidth, InSim | InReal, "any", "any", "Count bytes a second pass from On to To, for For"},
	{Reset, InSim | InReal, "any", "any", "the connections between On and To are reset"},
	{HalfOpen, InSim | InReal, "any", "any", "the connections between On and To are gone for On at once, for To only after the keepalive"},
	{Corrupt, InSim | InReal, "any", "any", "the share Share of packets from On to To is damaged, for For"},

	{DiskSlow, InSim | InReal, "node", "", "each fsync takes By longer, for For"},
	{DiskStall, InSim | InReal, "node", "", "one fsync takes By (real: all that writes waits for it)"},
	{DiskFull, InSim | InReal, "node", "", "no room for enqueues, for For; Count 1: it fills up so fast that batches find no room, before the node knows (simulator alone)"},
	{DiskError, InSim | InReal, "node", "", "an fsync fails: the node must stop itself; started again after For"},
	{Torn, InSim | InReal, "node", "", "it is killed and its last group of writes is torn: the store knows that something is missing; started again after For"},
	{Amnesia, InSim | InReal, "node", "", "it is killed and loses the last Count synced groups without a word; started again after For"},
	{Damage, InSim | InReal, "node", "", "a bit of a stored batch flips; Count 1: the scrubber finds it at once, else the next read does"},
	{DamageRecord, InSim | InReal, "node", "", "it is killed and a bit of Count records (terms, ack pages; 0: one) flips; started again after For"},
	{OpenError, InSim | InReal, "node", "", "it is killed and a segment (Count 1: all its records) does not open any more; started again after For"},
	{Rollback, InSim | InReal, "node", "", "it is killed and its disk is set back to a copy from By before; started again after For"},
	{Wipe, InSim | InReal, "node", "", "it is killed and its disk is lost; a new node with an empty disk is started in its place after For"},
	{KeyReturns, InSim, "node", "", "records that were deleted are there again after the next boot (dgraph-io/badger#2286); killed and started again after For"},
	{SlowRead, InSim, "node", "", "each read takes By longer, for For"},

	{WallJump, InSim, "node", "", "its wall clock jumps by By"},
	{ClockRate, InSim, "node", "", "its monotonic clock runs Count ppm faster, for For"},

	{FalseDeath, InSim, "node", "node", "gossip tells On that To is dead, for For"},
	{GossipCut, InSim | InReal, "node", "node", "no gossip passes between On and To while connections do, for For"},
	{GossipSilent, InSim, "node", "", "gossip tells On nothing new, for For"},
	{StaleRevive, InSim, "node", "node", "gossip tells On that To lives, though it is dead, for For"},

	{ConsumerCrash, InSim | InReal, "client", "", "the consumer is killed with all that it holds; started again after For"},
	{ConsumerPause, InSim | InReal, "client", "", "the consumer stands still for For"},
	{ConsumerSlow, InSim | InReal, "client", "", "the consumer works By longer on each message, for For"},
	{ProducerCrash, InSim | InReal, "client", "", "the producer is killed; a new one is started after For"},
	{NackStorm, InSim | InReal, "client", "", "the consumer nacks all it gets, for For"},
	{Poison, InSim | InReal, "client", "", "one message in Count kills the consumer that works on it, for For"},
	{Burst, InSim | InReal, "client", "", "the producer sends Count times as fast, for For"},
	{AnswerLost, InSim | InReal, "client", "node", "what To answers to On is lost, and then the connection, for For"},
	{DeleteQueue, InSim | InReal, "", "", "a queue of its own is created, filled, deleted and created again while nodes come and go"},
	{UpdateQueue, InSim | InReal, "client", "", "settings of the queue of On are changed, at random and By apart, for For"},
	{PauseQueue, InSim | InReal, "client", "", "nothing is handed out to the group of the consumer On (Count 1: of its queue) for For, until it is resumed; with By until it goes on by itself, By after it began, by the clock of the owner"},
}
