"""What watches over the course of a training, and what it does when a step goes wrong."""
