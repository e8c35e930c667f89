package report

// What the template asks of places. They are methods, so that the template has no sums.

// Inner is how wide the part with times is.
func (p *picture) Inner() int { return p.Width - p.Left - p.Right }

// Clip is where what has a time may be drawn: marks stick out at both ends.
func (p *picture) Clip() int { return p.Left - 6 }

// ClipWidth is how wide that is.
func (p *picture) ClipWidth() int { return p.Width - p.Clip() }

// NameX is where the names of lanes end.
func (p *picture) NameX() int { return p.Left - 10 }

// Depth is how high all lanes are.
func (p *picture) Depth() int { return p.Bottom - p.Top }

// BarY is where the bar of a fault is, below its words if it has any.
func (f faultBar) BarY(thin bool) int {
	if thin {
		return f.Y + 1
	}
	return f.Y + faultHeight - 5
}

// TextY is the baseline of its words; where there are many faults they are hidden.
func (f faultBar) TextY(thin bool) int {
	if thin {
		return f.Y + thinFault
	}
	return f.Y + faultHeight - 8
}

// RailY is the top of the rail of a lane.
func (l lane) RailY() int { return l.Y - l.RailH()/2 }

// RailH is its height: clients have thin ones.
func (l lane) RailH() int {
	if l.Client {
		return 4
	}
	return railHeight
}

// SmallY is the top of the rail of a small lane.
func (l lane) SmallY() int { return l.Y - smallRail/2 }

// Wide is the width of a mark.
func (m mark) Wide() int { return 2 * m.Half }

func (c *charts) Inner() int     { return c.Width - c.Left - c.Right }
func (c *charts) NameX() int     { return c.Left - 10 }
func (c *charts) RightX() int    { return c.Width - c.Right }
func (c *charts) Scale() float64 { return float64(c.Inner()) / chartUnits }
func (c chart) BaseY() int       { return c.Y + c.H }
