package main

import (
	"context"
	"fmt"
	"net/rpc"
	"os/signal"
	"sort"
	"sync"
	"syscall"
	"time"

	"interop/iproto"
)

// caller writes and reads one slot, and knows what may be in it. Only it writes there.
type caller struct {
	index    int
	possible []string // more than one after a write whose answer was lost
	count    int
}

// step writes or reads; an error of the connection is told apart from a wrong answer.
func (c *caller) step(client *rpc.Client) (lost, wrong error) {
	c.count++
	if c.count%2 == 1 {
		text := fmt.Sprintf("slot %d call %d", c.index, c.count)
		c.possible = append(c.possible, text)
		response, err := call(client, iproto.Replace, uint32(c.count), iproto.ReplaceBody(c.index, text))
		if err != nil {
			return err, nil
		}
		if response.ReturnCode != 0 || string(response.Body) != "\x80" {
			return nil, fmt.Errorf("write: %+v", response)
		}
		c.possible = []string{text}
		return nil, nil
	}
	response, err := call(client, iproto.Read, uint32(c.count), iproto.ReadBody(c.index))
	if err != nil {
		return err, nil
	}
	for _, text := range c.possible {
		if string(response.Body) == string(iproto.TextBody(text)) {
			c.possible = []string{text}
			return nil, nil
		}
	}
	return nil, fmt.Errorf("slot %d has %q, and not one of %q", c.index, response.Body, c.possible)
}

// connection has callers that share one client, and dials again when it is lost.
func connection(on context.Context, address string, callers []*caller) (losses int, err error) {
	for on.Err() == nil {
		client, err := dial(address)
		if err != nil {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		var group sync.WaitGroup
		results := make(chan [2]error, len(callers))
		for _, one := range callers {
			group.Add(1)
			go func(one *caller) {
				defer group.Done()
				for on.Err() == nil {
					if lost, wrong := one.step(client); lost != nil || wrong != nil {
						results <- [2]error{lost, wrong}
						return
					}
				}
			}(one)
		}
		group.Wait()
		close(results)
		_ = client.Close()
		for result := range results {
			if result[1] != nil {
				return losses, result[1]
			}
			if !isLost(result[0]) {
				return losses, result[0]
			}
		}
		losses++
	}
	return losses, nil
}

// load checks every answer while the server may do what it likes to connections. SIGTERM ends it
// before its time.
func load(address string, duration time.Duration, connections, depth int) error {
	limited, cancel := context.WithTimeout(context.Background(), duration)
	defer cancel()
	on, stop := signal.NotifyContext(limited, syscall.SIGTERM)
	defer stop()
	callers := make([]*caller, connections*depth)
	for i := range callers {
		callers[i] = &caller{index: i, possible: []string{""}}
	}
	type result struct {
		losses int
		err    error
	}
	results := make(chan result)
	for i := 0; i < connections; i++ {
		go func(own []*caller) {
			losses, err := connection(on, address, own)
			results <- result{losses, err}
		}(callers[i*depth : (i+1)*depth])
	}
	losses := 0
	for i := 0; i < connections; i++ {
		one := <-results
		if one.err != nil {
			return one.err
		}
		losses += one.losses - 1 // the last one ended in time
	}
	calls := 0
	for _, one := range callers {
		calls += one.count
	}
	fmt.Println("calls", calls, "connections lost", losses)
	return nil
}

// bench reads slots as fast as the server answers, with depth calls on their way on each connection.
func bench(address string, duration time.Duration, connections, depth int) error {
	type result struct {
		times []time.Duration
		err   error
	}
	results := make(chan result)
	begin := time.Now()
	end := begin.Add(duration)
	for i := 0; i < connections; i++ {
		client, err := dial(address)
		if err != nil {
			return err
		}
		for j := 0; j < depth; j++ {
			go func(index int) {
				var times []time.Duration
				for now := time.Now(); now.Before(end); {
					response, err := call(client, iproto.Read, 1, iproto.ReadBody(index))
					if err == nil && response.ReturnCode != 0 {
						err = fmt.Errorf("%+v", response)
					}
					if err != nil {
						results <- result{nil, err}
						return
					}
					done := time.Now()
					times = append(times, done.Sub(now))
					now = done
				}
				results <- result{times, nil}
			}(j)
		}
	}
	var all []time.Duration
	for i := 0; i < connections*depth; i++ {
		one := <-results
		if one.err != nil {
			return one.err
		}
		all = append(all, one.times...)
	}
	taken := time.Since(begin).Seconds()
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	fmt.Printf("calls_per_second %.0f p50_us %d p99_us %d\n", float64(len(all))/taken,
		all[len(all)/2].Microseconds(), all[len(all)*99/100].Microseconds())
	return nil
}
