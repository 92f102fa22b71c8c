using XenLoop.Lab;

// Shows two guests' traffic move to shared memory and back. ./demo builds the daemon, and calls this with its path.
if (args is not [string daemon])
{
    Console.Error.WriteLine("usage: xenloop-lab-demo XENLOOPD-LAB");
    return 2;
}

string binary = Path.GetFullPath(daemon);
if (!File.Exists(binary))
{
    Console.Error.WriteLine($"xenloop-lab-demo: there is no {binary}; packaging/publish makes one.");
    return 1;
}

try
{
    return await Demo.RunAsync(binary, Console.Out);
}
catch (InvalidOperationException e)
{
    Console.Error.WriteLine($"xenloop-lab-demo: {e.Message}");
    return 1;
}
