// Package original is a net/rpc server of the storage: it behaves as the one for which the
// clients were written, and only Go's own packages speak on its wire.
package original

import (
	"errors"
	"net"
	"net/rpc"
	"sync"

	"interop/iproto"
)

const (
	slots     = 1000
	slotBytes = 256
)

type state int

const (
	readWrite state = iota
	readOnly
	maintenance
)

var (
	errReplaceReadOnly    = errors.New("can't replace at readOnly mode")
	errReplaceMaintenance = errors.New("can't replace at maintenance mode")
	errReadMaintenance    = errors.New("can't read at maintenance mode")
	errBigString          = errors.New("incoming string cannot take up more than 256 bytes")
	errIndex              = errors.New("invalid ID. Valid value in range[0; 999]")
	errFunction           = errors.New("no such function")
)

// MyService is the service that clients call.
type MyService struct {
	mutex sync.RWMutex
	state state
	slots [slots]string
}

// MainHandler is its method.
func (s *MyService) MainHandler(request iproto.Request, response *iproto.Response) error {
	body, err := s.execute(request.Header.FuncID, request.Body)
	if err != nil {
		response.ReturnCode = 1
		body = iproto.String(err.Error())
	}
	response.Header = request.Header
	response.Header.BodyLength = uint32(len(body))
	response.Body = body
	return nil
}

func (s *MyService) execute(function uint32, body []byte) ([]byte, error) {
	switch function {
	case iproto.Read:
		index, _, err := iproto.Index(body, 1)
		if err != nil {
			return nil, err
		}
		text, err := s.read(index)
		return iproto.TextBody(text), err
	case iproto.Replace:
		index, left, err := iproto.Index(body, 2)
		if err != nil {
			return nil, err
		}
		if len(left) < 2 || string(left[:2]) != "\xa1S" {
			return nil, errors.New("no S")
		}
		text, err := iproto.Text(left[2:])
		if err != nil {
			return nil, err
		}
		return []byte{0x80}, s.replace(index, text)
	case iproto.SwitchReadOnly:
		s.switchTo(readOnly)
	case iproto.SwitchReadWrite:
		s.switchTo(readWrite)
	case iproto.SwitchMaintenance:
		s.switchTo(maintenance)
	default:
		return nil, errFunction
	}
	return iproto.Nil(), nil
}

func (s *MyService) read(index int) (string, error) {
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	if s.state == maintenance {
		return "", errReadMaintenance
	}
	if index < 0 || index >= slots {
		return "", errIndex
	}
	return s.slots[index], nil
}

func (s *MyService) replace(index int, text string) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	switch {
	case s.state == maintenance:
		return errReplaceMaintenance
	case s.state == readOnly:
		return errReplaceReadOnly
	case len(text) > slotBytes:
		return errBigString
	case index < 0 || index >= slots:
		return errIndex
	}
	s.slots[index] = text
	return nil
}

func (s *MyService) switchTo(wanted state) {
	s.mutex.Lock()
	s.state = wanted
	s.mutex.Unlock()
}

// Serve serves a fresh storage until the listener is closed.
func Serve(listener net.Listener) error {
	server := rpc.NewServer()
	if err := server.Register(new(MyService)); err != nil {
		return err
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go server.ServeConn(connection)
	}
}
