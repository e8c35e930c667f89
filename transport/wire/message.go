package wire

import "fmt"

// Type is the number of a message on the wire. Numbers are only appended, never reused.
type Type uint8

// The types. 1..31 connection and errors, 32..95 clients, 96..191 nodes.
const (
	TypeHello Type = 1
	TypeError Type = 2
	TypePing  Type = 3
	TypeDone  Type = 4

	TypeEnqueue       Type = 32
	TypeEnqueued      Type = 33
	TypeSubscribe     Type = 34
	TypeUnsubscribe   Type = 35
	TypeDeliver       Type = 36
	TypeOwner         Type = 37
	TypeSettle        Type = 38
	TypeSettled       Type = 39
	TypeResume        Type = 40
	TypeCreateQueue   Type = 41
	TypeDeleteQueue   Type = 42
	TypeListQueues    Type = 43
	TypeDescribeQueue Type = 44
	TypeQueueInfo     Type = 45
	TypeQueues        Type = 46
	TypeInspect       Type = 47
	TypeInspected     Type = 48
	TypeGetMesh       Type = 49
	TypeMesh          Type = 50
	TypeGetNode       Type = 51
	TypeNodeInfo      Type = 52
	TypeUpdateQueue   Type = 53
	TypeQueueUpdated  Type = 54
	TypePauseQueue    Type = 55

	TypeBeat         Type = 96
	TypeReplicate    Type = 97
	TypeSynced       Type = 98
	TypeStoreAcks    Type = 99
	TypeClaim        Type = 100
	TypeGranted      Type = 101
	TypeRenew        Type = 102
	TypeRenewed      Type = 103
	TypeOffer        Type = 104
	TypeRelease      Type = 105
	TypeGetState     Type = 106
	TypeState        Type = 107
	TypeGetBatches   Type = 108
	TypeBatches      Type = 109
	TypeDigests      Type = 110
	TypeDiffering    Type = 111
	TypeWatermarks   Type = 112
	TypeRetries      Type = 113
	TypeGetCatalog   Type = 114
	TypeCatalog      Type = 115
	TypePutCatalog   Type = 116
	TypeJoin         Type = 117
	TypeGetRings     Type = 118
	TypeRings        Type = 119
	TypeRingPrepare  Type = 120
	TypeRingPromise  Type = 121
	TypeRingAccept   Type = 122
	TypeRingAccepted Type = 123
	TypeCopied       Type = 125
	TypeMoved        Type = 126
	TypeRemembered   Type = 127
)

// Message is what a frame carries: one of the structs of this package, by pointer.
// A message that was sent or received is never changed.
type Message interface{ Type() Type }

func (*Hello) Type() Type         { return TypeHello }
func (*Error) Type() Type         { return TypeError }
func (*Ping) Type() Type          { return TypePing }
func (*Done) Type() Type          { return TypeDone }
func (*Enqueue) Type() Type       { return TypeEnqueue }
func (*Enqueued) Type() Type      { return TypeEnqueued }
func (*Subscribe) Type() Type     { return TypeSubscribe }
func (*Unsubscribe) Type() Type   { return TypeUnsubscribe }
func (*Deliver) Type() Type       { return TypeDeliver }
func (*Owner) Type() Type         { return TypeOwner }
func (*Settle) Type() Type        { return TypeSettle }
func (*Settled) Type() Type       { return TypeSettled }
func (*Resume) Type() Type        { return TypeResume }
func (*CreateQueue) Type() Type   { return TypeCreateQueue }
func (*DeleteQueue) Type() Type   { return TypeDeleteQueue }
func (*UpdateQueue) Type() Type   { return TypeUpdateQueue }
func (*QueueUpdated) Type() Type  { return TypeQueueUpdated }
func (*PauseQueue) Type() Type    { return TypePauseQueue }
func (*ListQueues) Type() Type    { return TypeListQueues }
func (*DescribeQueue) Type() Type { return TypeDescribeQueue }
func (*QueueInfo) Type() Type     { return TypeQueueInfo }
func (*Queues) Type() Type        { return TypeQueues }
func (*Inspect) Type() Type       { return TypeInspect }
func (*Inspected) Type() Type     { return TypeInspected }
func (*GetMesh) Type() Type       { return TypeGetMesh }
func (*Mesh) Type() Type          { return TypeMesh }
func (*GetNode) Type() Type       { return TypeGetNode }
func (*NodeInfo) Type() Type      { return TypeNodeInfo }
func (*Beat) Type() Type          { return TypeBeat }
func (*Replicate) Type() Type     { return TypeReplicate }
func (*Synced) Type() Type        { return TypeSynced }
func (*StoreAcks) Type() Type     { return TypeStoreAcks }
func (*Claim) Type() Type         { return TypeClaim }
func (*Granted) Type() Type       { return TypeGranted }
func (*Renew) Type() Type         { return TypeRenew }
func (*Renewed) Type() Type       { return TypeRenewed }
func (*Offer) Type() Type         { return TypeOffer }
func (*Release) Type() Type       { return TypeRelease }
func (*GetState) Type() Type      { return TypeGetState }
func (*State) Type() Type         { return TypeState }
func (*GetBatches) Type() Type    { return TypeGetBatches }
func (*Batches) Type() Type       { return TypeBatches }
func (*Digests) Type() Type       { return TypeDigests }
func (*Differing) Type() Type     { return TypeDiffering }
func (*Watermarks) Type() Type    { return TypeWatermarks }
func (*Retries) Type() Type       { return TypeRetries }
func (*GetCatalog) Type() Type    { return TypeGetCatalog }
func (*Catalog) Type() Type       { return TypeCatalog }
func (*PutCatalog) Type() Type    { return TypePutCatalog }
func (*Join) Type() Type          { return TypeJoin }
func (*GetRings) Type() Type      { return TypeGetRings }
func (*Rings) Type() Type         { return TypeRings }
func (*RingPrepare) Type() Type   { return TypeRingPrepare }
func (*RingPromise) Type() Type   { return TypeRingPromise }
func (*RingAccept) Type() Type    { return TypeRingAccept }
func (*RingAccepted) Type() Type  { return TypeRingAccepted }
func (*Copied) Type() Type        { return TypeCopied }
func (*Moved) Type() Type         { return TypeMoved }
func (*Remembered) Type() Type    { return TypeRemembered }

// New returns an empty message of a type. The error is ErrUnknownType.
func New(t Type) (Message, error) {
	maker, ok := makers[t]
	if !ok {
		return nil, fmt.Errorf("%w %d", ErrUnknownType, t)
	}
	return maker(), nil
}

var makers = map[Type]func() Message{
	TypeHello:         func() Message { return new(Hello) },
	TypeError:         func() Message { return new(Error) },
	TypePing:          func() Message { return new(Ping) },
	TypeDone:          func() Message { return new(Done) },
	TypeEnqueue:       func() Message { return new(Enqueue) },
	TypeEnqueued:      func() Message { return new(Enqueued) },
	TypeSubscribe:     func() Message { return new(Subscribe) },
	TypeUnsubscribe:   func() Message { return new(Unsubscribe) },
	TypeDeliver:       func() Message { return new(Deliver) },
	TypeOwner:         func() Message { return new(Owner) },
	TypeSettle:        func() Message { return new(Settle) },
	TypeSettled:       func() Message { return new(Settled) },
	TypeResume:        func() Message { return new(Resume) },
	TypeCreateQueue:   func() Message { return new(CreateQueue) },
	TypeDeleteQueue:   func() Message { return new(DeleteQueue) },
	TypeUpdateQueue:   func() Message { return new(UpdateQueue) },
	TypeQueueUpdated:  func() Message { return new(QueueUpdated) },
	TypePauseQueue:    func() Message { return new(PauseQueue) },
	TypeListQueues:    func() Message { return new(ListQueues) },
	TypeDescribeQueue: func() Message { return new(DescribeQueue) },
	TypeQueueInfo:     func() Message { return new(QueueInfo) },
	TypeQueues:        func() Message { return new(Queues) },
	TypeInspect:       func() Message { return new(Inspect) },
	TypeInspected:     func() Message { return new(Inspected) },
	TypeGetMesh:       func() Message { return new(GetMesh) },
	TypeMesh:          func() Message { return new(Mesh) },
	TypeGetNode:       func() Message { return new(GetNode) },
	TypeNodeInfo:      func() Message { return new(NodeInfo) },
	TypeBeat:          func() Message { return new(Beat) },
	TypeReplicate:     func() Message { return new(Replicate) },
	TypeSynced:        func() Message { return new(Synced) },
	TypeStoreAcks:     func() Message { return new(StoreAcks) },
	TypeClaim:         func() Message { return new(Claim) },
	TypeGranted:       func() Message { return new(Granted) },
	TypeRenew:         func() Message { return new(Renew) },
	TypeRenewed:       func() Message { return new(Renewed) },
	TypeOffer:         func() Message { return new(Offer) },
	TypeRelease:       func() Message { return new(Release) },
	TypeGetState:      func() Message { return new(GetState) },
	TypeState:         func() Message { return new(State) },
	TypeGetBatches:    func() Message { return new(GetBatches) },
	TypeBatches:       func() Message { return new(Batches) },
	TypeDigests:       func() Message { return new(Digests) },
	TypeDiffering:     func() Message { return new(Differing) },
	TypeWatermarks:    func() Message { return new(Watermarks) },
	TypeRetries:       func() Message { return new(Retries) },
	TypeGetCatalog:    func() Message { return new(GetCatalog) },
	TypeCatalog:       func() Message { return new(Catalog) },
	TypePutCatalog:    func() Message { return new(PutCatalog) },
	TypeJoin:          func() Message { return new(Join) },
	TypeGetRings:      func() Message { return new(GetRings) },
	TypeRings:         func() Message { return new(Rings) },
	TypeRingPrepare:   func() Message { return new(RingPrepare) },
	TypeRingPromise:   func() Message { return new(RingPromise) },
	TypeRingAccept:    func() Message { return new(RingAccept) },
	TypeRingAccepted:  func() Message { return new(RingAccepted) },
	TypeCopied:        func() Message { return new(Copied) },
	TypeMoved:         func() Message { return new(Moved) },
	TypeRemembered:    func() Message { return new(Remembered) },
}
