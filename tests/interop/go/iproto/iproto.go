// Package iproto has the types and bodies of a net/rpc client of the storage.
package iproto

import (
	"encoding/binary"
	"errors"
)

// Method is what clients call.
const Method = "MyService.MainHandler"

// Functions.
const (
	SwitchReadOnly    uint32 = 0x00010001
	SwitchReadWrite   uint32 = 0x00010002
	SwitchMaintenance uint32 = 0x00010003
	Replace           uint32 = 0x00020001
	Read              uint32 = 0x00020002
)

// Header, Request and Response are the types as clients declare them: their names and the names
// of their fields are on the wire.
type Header struct {
	FuncID     uint32
	BodyLength uint32
	RequestID  uint32
}

type Request struct {
	Header Header
	Body   []byte
}

type Response struct {
	Header     Header
	ReturnCode uint32
	Body       []byte
}

// NewRequest is a request with these bytes as its body.
func NewRequest(function uint32, id uint32, body []byte) Request {
	return Request{Header{function, uint32(len(body)), id}, body}
}

// Nil is the body of the switches.
func Nil() []byte { return []byte{0xc0} }

// ReadBody is MsgPack of {"ID": index}.
func ReadBody(index int) []byte {
	return appendInt([]byte{0x81, 0xa2, 'I', 'D'}, index)
}

// ReplaceBody is MsgPack of {"ID": index, "S": text}.
func ReplaceBody(index int, text string) []byte {
	body := appendInt([]byte{0x82, 0xa2, 'I', 'D'}, index)
	return appendString(append(body, 0xa1, 'S'), text)
}

// TextBody is MsgPack of {"S": text}.
func TextBody(text string) []byte {
	return appendString([]byte{0x81, 0xa1, 'S'}, text)
}

// String is MsgPack of a string.
func String(text string) []byte { return appendString(nil, text) }

func appendInt(body []byte, value int) []byte {
	switch {
	case value >= -32 && value < 0x80:
		return append(body, byte(value))
	case value >= 0 && value < 0x10000:
		return append(body, 0xcd, byte(value>>8), byte(value))
	default:
		body = append(body, 0xd3)
		return binary.BigEndian.AppendUint64(body, uint64(value))
	}
}

func appendString(body []byte, text string) []byte {
	switch size := len(text); {
	case size < 32:
		body = append(body, 0xa0|byte(size))
	case size < 0x100:
		body = append(body, 0xd9, byte(size))
	default:
		body = append(body, 0xda, byte(size>>8), byte(size))
	}
	return append(body, text...)
}

var errBody = errors.New("the body is not what was expected")

// Index takes the value of "ID" from the front of a body; also says what follows it.
func Index(body []byte, fields byte) (int, []byte, error) {
	if len(body) < 5 || body[0] != 0x80|fields || string(body[1:4]) != "\xa2ID" {
		return 0, nil, errBody
	}
	switch head := body[4]; {
	case head < 0x80 || head >= 0xe0:
		return int(int8(head)), body[5:], nil
	case head == 0xcd && len(body) >= 7:
		return int(binary.BigEndian.Uint16(body[5:])), body[7:], nil
	case head == 0xd3 && len(body) >= 13:
		return int(int64(binary.BigEndian.Uint64(body[5:]))), body[13:], nil
	}
	return 0, nil, errBody
}

// Text is a MsgPack string that ends the body.
func Text(body []byte) (string, error) {
	at, size := 1, 0
	switch {
	case len(body) == 0:
		return "", errBody
	case body[0]&0xe0 == 0xa0:
		size = int(body[0] & 0x1f)
	case body[0] == 0xd9 && len(body) >= 2:
		at, size = 2, int(body[1])
	case body[0] == 0xda && len(body) >= 3:
		at, size = 3, int(binary.BigEndian.Uint16(body[1:]))
	default:
		return "", errBody
	}
	if len(body) != at+size {
		return "", errBody
	}
	return string(body[at:]), nil
}
